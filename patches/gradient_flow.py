"""Whether a gradient flows through a place in the code."""

from __future__ import annotations

import re

import libcst as cst

from patches import names, operations
from patches.source import Source


def no_grad_at(source: Source, node: cst.CSTNode) -> bool:
    """Whether no gradient flows through `node`.

    `with torch.no_grad()`, `inference_mode` or the decorator; a value that is only read out (`.item()`, `.detach()`,
    `float(...)`); initialisation; the inside of a torch.autograd.Function or of an optimizer.
    """
    if any(_is_no_grad(source, item) for item in source.with_items(node)):
        return True
    function = source.function_of(node)
    if function is not None:
        if any(_is_no_grad(source, decorator.decorator) for decorator in function.decorators) or _INITIALISER.search(function.name.value):
            return True
        owner = source.class_of(function)
        if owner is not None and any(_UNDIFFERENTIATED.search(source.code(base.value)) for base in owner.bases):
            return True
    return _is_read_out(source, node)


_INITIALISER = re.compile(r"^(__init__|reset_parameters|_?init(ialize|ialise)?(_.*)?|.*_init)$")
_UNDIFFERENTIATED = re.compile(r"(^|\.)(autograd\.)?Function$|Optimizer$")
_READ_OUT = frozenset(("item", "detach", "numpy", "tolist"))


def _is_read_out(source: Source, node: cst.CSTNode) -> bool:
    """Whether the value goes, through a chain of methods, into a plain number or a detached tensor."""
    current = node
    while True:
        parent = source.parents.get(current)
        if isinstance(parent, cst.Attribute) and parent.value is current:
            call = source.parents.get(parent)
            if not isinstance(call, cst.Call) or call.func is not parent:
                return False
            if parent.attr.value in _READ_OUT:
                return True
            current = call
        elif isinstance(parent, cst.Arg):
            call = source.parents.get(parent)
            if isinstance(call, cst.Call) and isinstance(call.func, cst.Name) and call.func.value in ("float", "int", "bool", "print"):
                return True
            if not isinstance(call, cst.Call) or operations.parse(source, call) is None:
                return False
            current = call
        else:
            return False


def _is_no_grad(source: Source, node: cst.BaseExpression) -> bool:
    callee = node.func if isinstance(node, cst.Call) else node
    full = names.qualified(source, callee) or ""
    if full in ("torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad", "torch.autograd.grad_mode.no_grad"):
        return True
    if full in ("torch.set_grad_enabled", "torch.autograd.set_grad_enabled") and isinstance(node, cst.Call) and node.args:
        return isinstance(node.args[0].value, cst.Name) and node.args[0].value.value == "False"
    return False
