"""NS404 masked-write-lost."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import masking
from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_WRITES = frozenset(
    "fill_ zero_ copy_ clamp_ add_ sub_ mul_ div_ masked_fill_ normal_ uniform_ index_fill_ exp_ log_ sqrt_ neg_ abs_ nan_to_num_".split()
)


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
            if any(masking.copies(source, element.slice) for element in inner.slice) and _is_array(source, inner.value):
                yield self.hit(place)
                return
            inner = inner.value


def _is_array(source: Source, node: cst.BaseExpression) -> bool:
    kind = m.value_of(source, node).kind
    return kind == "tensor" or (kind == "unknown" and m.imports_torch(source) and not isinstance(node, (cst.Dict, cst.List)))
