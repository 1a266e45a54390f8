"""NS404 masked-write-lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import flow
from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_WRITES = frozenset(
    "fill_ zero_ copy_ clamp_ add_ sub_ mul_ div_ masked_fill_ normal_ uniform_ index_fill_ exp_ log_ sqrt_ neg_ abs_ nan_to_num_".split()
)
_MASK_NAME = re.compile(r"(^|_)masks?(_|\d|$)")


class MaskedWriteLost(AbstractRule):
    """A write into the copy that indexing by a mask makes.

    What it finds: `x[mask][...] = v`, `x[mask][...] += v` and `x[mask].fill_(v)` where mask is a boolean mask, an index
    tensor or a list of a tensor x: only these make a copy (a slice or a number makes a view, and stays quiet).

    Why it is bad: the value is written into a temporary and lost. Nothing is said, x is unchanged: a mask that does not
    mask, a NaN that is not removed.

    Example:
        x[mask][:, 0] = 0.0

    Use instead:
        x[mask, 0] = 0.0

    Fix safety: display. One subscript must do, and which one depends on the shape of the mask.

    References: PyTorch documentation, "Tensor views": advanced indexing returns a copy; NumPy manual, "Assigning values to indexed arrays".
    """

    code = "NS404"
    triggers = ("][", "].", "] [")
    requires = (r"\] ?\[[^\n]*\] *(?:[-+*/@%&|^]|//|\*\*)?=(?!=)|\]\s*\.\w+_\(",)
    nodes = (cst.AssignTarget, cst.AugAssign, cst.Call)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.Call):
            if not isinstance(node.func, cst.Attribute) or node.func.attr.value not in _WRITES or not isinstance(source.parents.get(node), cst.Expr):
                return
            inner: cst.BaseExpression = node.func.value
            place: cst.CSTNode = node
        else:
            assert isinstance(node, (cst.AssignTarget, cst.AugAssign))
            if not isinstance(node.target, cst.Subscript):
                return
            inner, place = node.target.value, node.target
        while isinstance(inner, cst.Subscript):
            if any(copies(source, element.slice) for element in inner.slice) and _is_array(source, inner.value):
                yield self.hit(place)
                return
            inner = inner.value


def copies(source: Source, index: cst.BaseSlice) -> bool:
    """Whether an index is a mask, an index tensor or a list, for certain."""
    if not isinstance(index, cst.Index):
        return False
    expression = flow.assigned(source, index.value)
    if isinstance(expression, cst.List):
        return True
    if isinstance(expression, cst.UnaryOperation) and isinstance(expression.operator, cst.BitInvert):
        return m.value_of(source, expression.expression).kind in ("tensor", "unknown")
    if isinstance(expression, cst.Comparison):
        sides = (expression.left, *(target.comparator for target in expression.comparisons))
        kinds = {m.value_of(source, side).kind for side in sides}
        return "tensor" in kinds or ("unknown" in kinds and not kinds & {"other", "numpy"} and m.number(source, sides[-1]) is not None)
    value = m.value_of(source, expression)
    if value.kind in ("unknown", "tensor") and isinstance(expression, (cst.Name, cst.Attribute)):
        name = expression.value if isinstance(expression, cst.Name) else expression.attr.value
        if _MASK_NAME.search(name):
            return True
    if value.kind == "tensor" and value.is_integer:
        return isinstance(expression, cst.Call) and value.dtype in ("bool", "int64") and not _is_scalar(source, expression)
    return False


def _is_scalar(source: Source, call: cst.Call) -> bool:
    """`x.argmax()` without a dim is one number: indexing by a 0-d integer tensor makes a view of x."""
    found = m.operation(source, call)
    return found is None or (found.name in ("argmax", "argmin", "numel", "size", "long", "int", "randint", "max", "min") and found.plain)


def _is_array(source: Source, node: cst.BaseExpression) -> bool:
    kind = m.value_of(source, node).kind
    return kind == "tensor" or (kind == "unknown" and m.imports_torch(source) and not isinstance(node, (cst.Dict, cst.List)))
