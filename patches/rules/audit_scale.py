"""NS905 audit-scale."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import flow
from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_SIZE = re.compile(
    r"(^|_)(dim|dims|d|dk|dv|size|hidden|head|heads|embd?|embedding|channels?|features?|width|units|model|nx|inner|latent|key|c|C|D|E|H)(_|$|\d)"
    r"|^(d_?k|d_?v|d_?model|d_?head|n_?embd|num_\w+|n_\w+|\w*dim\w*|\w*size|\w*width|\w*hidden\w*)$"
)


class AuditScale(AbstractRule):
    """The square root of a size that could be 0 (audit Q1).

    What it finds: `math.sqrt(q.size(-1))`, `head_dim ** -0.5`, `np.sqrt(d_model)`: the root of a number that is a size.

    Why it is bad: only where the size is a quotient: `hidden // heads` is 0 when there are fewer features than heads, and attention is then 0 / 0 or
    silently nothing. The root itself is harmless.

    Example:
        score = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))

    Use instead:
        if hidden % heads:
            raise ValueError(...)    # refuse the configuration where it is given

    Fix safety: display. A note with the verdict.

    References: audit Q1.
    """

    code = "NS905"
    triggers = ("sqrt", "0.5", ".5", "1 / 2", "1/2")
    nodes = (cst.Call, cst.BinaryOperation)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        inside = rooted(source, node)
        if inside is not None and _is_size(source, inside):
            yield self.hit(node)


def rooted(source: Source, node: cst.CSTNode) -> cst.BaseExpression | None:
    """x of sqrt(x) (math, numpy or torch), x.sqrt(), x.rsqrt(), x ** 0.5 and x ** -0.5."""
    if isinstance(node, cst.BinaryOperation):
        sides = m.binary(node, "**")
        return sides[0] if sides is not None and m.number(source, sides[1]) in (0.5, -0.5) else None
    if not isinstance(node, cst.Call):
        return None
    full = m.qualified(source, node.func) or ""
    if full in ("math.sqrt", "numpy.sqrt", "cmath.sqrt", "torch.sqrt", "torch.rsqrt") and len(node.args) == 1:
        return node.args[0].value
    if full in ("math.pow", "builtins.pow", "torch.pow") and len(node.args) == 2 and m.number(source, node.args[1].value) in (0.5, -0.5):
        return node.args[0].value
    if isinstance(node.func, cst.Attribute) and not full:
        method = node.func.attr.value
        if method in ("sqrt", "rsqrt", "sqrt_", "rsqrt_") and not node.args:
            return node.func.value
        if method == "pow" and len(node.args) == 1 and m.number(source, node.args[0].value) in (0.5, -0.5):
            return node.func.value
    return None


def _is_size(source: Source, node: cst.BaseExpression, depth: int = 0) -> bool:
    if depth > 5 or m.number(source, node, defaults=False) is not None:
        return False
    if isinstance(node, cst.Call):
        full = m.qualified(source, node.func) or ""
        name = node.func.attr.value if isinstance(node.func, cst.Attribute) else full.rpartition(".")[2]
        if name in ("size", "numel", "dim", "len"):
            return True
        if name in ("float", "int", "tensor", "as_tensor", "max") and node.args:  # torch.tensor(float(d))
            return _is_size(source, node.args[0].value, depth + 1)
        return name in ("float", "to") and isinstance(node.func, cst.Attribute) and _is_size(source, node.func.value, depth + 1)
    if isinstance(node, cst.Subscript):
        return isinstance(node.value, cst.Attribute) and node.value.attr.value == "shape"
    if isinstance(node, cst.BinaryOperation):
        return isinstance(node.operator, (cst.FloorDivide, cst.Multiply, cst.Divide)) and any(
            _is_size(source, s, depth + 1) for s in (node.left, node.right)
        )
    if isinstance(node, cst.Attribute):
        return _SIZE.search(node.attr.value) is not None and m.value_of(source, node).kind not in ("tensor", "module")
    if not isinstance(node, cst.Name) or m.value_of(source, node).kind in ("tensor", "module", "numpy"):
        return False
    for binding in flow.reaching(source, node) or ():
        value = binding.value
        if binding.kind == "assign" and value is not None:
            if isinstance(value, cst.Attribute) and value.attr.value == "shape":
                return True
            if isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute) and value.func.attr.value == "size":
                return True
            if binding.index is None and _is_size(source, value, depth + 1):
                return True
    return _SIZE.search(node.value) is not None
