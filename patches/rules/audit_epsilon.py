"""NS901 audit-epsilon."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.rules.eps_zero_half import EpsZeroHalf
from patches.source import Source, dotted_name

_LARGEST = 1e-4
_FLOORS = ("maximum", "fmax", "clip", "clamp", "clamp_", "clip_", "clamp_min", "clamp_min_", "max", "where")
_EPS_HALF = EpsZeroHalf()


class AuditEpsilon(AbstractRule):
    """An added epsilon or a small floor that is harmless as written (audit E1, E3).

    What it finds: a constant of at most 1e-4 that is added to a value or is its floor (`x + 1e-12`, `np.maximum(p, 1e-10)`), and is
    not NS301: NumPy's float64, numbers, tensors that never meet float16.

    Why it is bad: as a rule it is not. The audit named two: the guard under a norm of float32 slices (E1), where the true fault
    was that the slices never took the input's dtype, and the floor of sampling probabilities in NumPy's float64 (E3), where the true
    fault was that one NaN score made every later draw raise. A larger epsilon, the audit's remedy, biases the value more.

    Example:
        A /= A.norm(p=2, dim=0) + 1e-12

    Use instead:
        A = F.normalize(A, dim=0, eps=torch.finfo(A.dtype).tiny)    # says the same more plainly

    Fix safety: display. A note with the verdict: nothing need be changed.

    References: audit E1, E3; measured: KL with an epsilon of 1e-8 under a variance of exp(-18) is -0.198, with 1e-6 -0.49.
    """

    code = "NS901"
    triggers = ("e-", "E-", "0.000", "eps", "EPS", "tiny")
    nodes = (cst.BinaryOperation, cst.Call)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.BinaryOperation):
            sides = m.binary(node, "+")
            if sides is None or not any(_is_small(source, side) for side in sides) or all(m.number(source, side) is not None for side in sides):
                return
        else:
            assert isinstance(node, cst.Call)
            callee = node.func.attr.value if isinstance(node.func, cst.Attribute) else dotted_name(node.func) or ""
            if callee not in _FLOORS or not any(_is_small(source, arg.value) for arg in node.args if not arg.star):
                return
        if not any(True for _ in _EPS_HALF.check(node, source)):
            yield self.hit(node)


def _is_small(source: Source, node: cst.BaseExpression) -> bool:
    value = m.number(source, node)
    return value is not None and 0 < value <= _LARGEST
