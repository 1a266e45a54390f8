"""NS801 uninitialised-parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import flow
from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_EMPTY = ("torch.empty", "torch.Tensor", "torch.FloatTensor", "torch.HalfTensor", "torch.DoubleTensor", "torch.cuda.FloatTensor", "torch.empty_like")
_FILLS_ALL = re.compile(
    r"(\.parameters\(|named_parameters\(|_parameters\b|\.modules\(|\.apply\(|getattr\(|setattr\(|load_state_dict|from_pretrained|self\.init\w*\(|"
    r"self\.\w*(init|reset)\w*\()"
)
_LOOPS = re.compile(r"\bin \w+(\.\w+)*\.(named_)?parameters\(|\.apply\(|PreTrained|ModelMixin|from_pretrained")


class UninitialisedParameter(AbstractRule):
    """A parameter made of whatever the memory held.

    What it finds: `nn.Parameter(torch.empty(...))` or `nn.Parameter(torch.Tensor(n, m))` under a name that nothing in the file fills: no nn.init,
    no in-place write, no assignment, no reset_parameters or loop over parameters in its class, no checkpoint loaded into it.

    Why it is bad: fresh memory is zeros on one run and 1e38 or NaN on the next: a model that trains on one machine and not on another.

    Example:
        self.scale = nn.Parameter(torch.empty(dim))

    Use instead:
        self.scale = nn.Parameter(torch.empty(dim))
        nn.init.ones_(self.scale)

    Fix safety: display. What a parameter starts from is the model's business.

    References: torch.empty ("filled with uninitialized data"); torch.nn.init.
    """

    code = "NS801"
    triggers = ("Parameter(",)
    requires = (r"empty|Tensor\(",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.Call)
        full = m.qualified(source, node.func) or ""
        if full.rpartition(".")[2] != "Parameter" or not full.startswith("torch.nn.") or not node.args or node.args[0].keyword is not None:
            return
        made = m.definition(source, node.args[0].value)
        if (
            not isinstance(made, cst.Call)
            or made is not node.args[0].value
            or m.qualified(source, made.func) not in _EMPTY
            or not _is_sized(source, made)
        ):
            return
        name = _attribute_of(source, node)
        owner = source.class_of(node)
        if name is None or owner is None or _is_frozen(node):
            return
        if _is_filled(source, name, node) or _may_be_filled_elsewhere(source, owner):
            return
        yield self.hit(node)


def _is_sized(source: Source, made: cst.Call) -> bool:
    """Whether the argument is a size: `torch.Tensor([1.0])` and `torch.Tensor(x)` hold values; an empty size holds nothing."""
    if not made.args:
        return False
    full = m.qualified(source, made.func)
    if full == "torch.empty" or full == "torch.empty_like":
        return not all(m.number(source, a.value) == 0 for a in made.args if a.keyword is None)
    plain = [a for a in made.args if a.keyword is None]
    return len(plain) > 1 or (len(plain) == 1 and m.value_of(source, plain[0].value).kind == "integer")


def _attribute_of(source: Source, node: cst.Call) -> str | None:
    statement = source.parents.get(node)
    if isinstance(statement, cst.Assign) and len(statement.targets) == 1:
        target = statement.targets[0].target
    elif isinstance(statement, cst.AnnAssign):
        target = statement.target
    else:
        return None
    return target.attr.value if isinstance(target, cst.Attribute) and isinstance(target.value, cst.Name) and target.value.value == "self" else None


def _is_frozen(node: cst.Call) -> bool:
    """A parameter that takes no gradient is a place for a checkpoint's numbers (quantised weights)."""
    return any(
        a.keyword is not None and a.keyword.value == "requires_grad" and not (isinstance(a.value, cst.Name) and a.value.value == "True")
        for a in node.args
    )


def _is_filled(source: Source, name: str, node: cst.Call) -> bool:
    """Whether any other line of the file writes `.name`, hands it to a call, or names it in a string."""
    if re.search(rf"['\"]{re.escape(name)}['\"]", source.text):
        return True
    own = source.statement_of(node)
    for attribute in source.nodes(cst.Attribute):
        assert isinstance(attribute, cst.Attribute)
        if attribute.attr.value != name or source.statement_of(attribute) is own:
            continue
        parent = source.parents.get(attribute)
        while isinstance(parent, (cst.Subscript, cst.Attribute)) and not _ends_in_underscore(parent):
            parent = source.parents.get(parent)
        if isinstance(parent, (cst.AssignTarget, cst.AugAssign)) or (isinstance(parent, cst.Attribute) and _ends_in_underscore(parent)):
            return True
        if isinstance(parent, cst.Arg) and isinstance(call := source.parents.get(parent), cst.Call):
            callee = source.code(call.func)
            if "init" in callee or callee.endswith("_") or "fill" in callee or "reset" in callee:
                return True
        if isinstance(parent, (cst.Element, cst.For, cst.CompFor)):  # `for w in (self.a, self.b): nn.init...`
            return True
    return False


def _ends_in_underscore(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Attribute) and node.attr.value.endswith("_") and not node.attr.value.startswith("_")


def _may_be_filled_elsewhere(source: Source, owner: cst.ClassDef) -> bool:
    """Whether the class (or a subclass or base of it) fills its parameters without naming them, or is filled by a framework."""
    family = [owner, *flow.base_classes(source, owner)]
    family += [c for c in source.nodes(cst.ClassDef) if isinstance(c, cst.ClassDef) and any(base is owner for base in flow.base_classes(source, c))]
    if any(_FILLS_ALL.search(source.code(c)) for c in family):
        return True
    if _LOOPS.search(source.text):
        return True  # a model that fills the parameters of its parts
    bases = [m.qualified(source, b.value) or source.code(b.value) for b in owner.bases]
    known = {c.name.value for c in flow.base_classes(source, owner)}
    if any(not b.startswith("torch.nn.") and b not in known and b.rpartition(".")[2] not in ("Module", "object", "ABC") for b in bases):
        return True  # a base of another file may fill them
    # A framework's hook initialises by type: `if isinstance(module, Owner): ...`
    return re.search(rf"isinstance\([^\n]*\b{re.escape(owner.name.value)}\b", source.text) is not None
