"""NS403 mask-mul-inf."""

from __future__ import annotations

import math
from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class MaskMulInf(AbstractRule):
    """A mask multiplied by infinity.

    What it finds: `mask * float("-inf")` of a tensor that may hold zeros. Off by default: of three such sites in
    public code none held a zero (`torch.ones(n, n) * -inf` under a triu).

    Why it is bad: 0 * inf is NaN: exactly the entries that were to be left alone become NaN.

    Example:
        bias = (1 - keep) * float("-inf")

    Use instead:
        bias = ((1 - keep) * 1.0).masked_fill((1 - keep) != 0, float("-inf"))

    Fix safety: unsafe. Where the old value was finite there was none: NaN becomes 0, +-inf stays as it was for a mask of zeros
    and ones; a negative entry of the mask would have had the other sign.

    References: IEEE 754-2019, 7.2 (0 * inf is invalid).
    """

    code = "NS403"
    words = ("inf", "INF", "Inf", "infty", "NINF", "infinity")
    nodes = (cst.BinaryOperation,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.BinaryOperation)
        sides = m.binary(node, "*")
        if sides is None:
            return
        for mask, infinity in (sides, sides[::-1]):
            size = m.number(source, infinity)
            if size is None or not math.isinf(size):
                continue
            value = m.value_of(source, mask)
            if value.low > 0 or value.high < 0 or value.kind in ("number", "integer", "numpy", "other") or not _is_mask(source, mask, value.kind):
                return
            if not m.is_pure(source, mask) or "\n" in source.code(mask):
                yield self.hit(node)
                return
            text = m.operand(source, mask)
            yield self.hit(node, *replace_with(node, f"({text} * 1.0).masked_fill({text} != 0, {source.code(infinity)})"))
            return


def _is_mask(source: Source, node: cst.BaseExpression, kind: str) -> bool:
    return m.is_tensor(source, node) or (kind == "unknown" and "mask" in source.code(node).lower() and m.imports_torch(source))
