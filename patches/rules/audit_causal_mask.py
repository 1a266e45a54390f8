"""NS903 audit-causal-mask."""

from __future__ import annotations

import math
from collections.abc import Iterator

import libcst as cst

from patches import masking
from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.rules.mask_neg_inf import MaskNegInf
from patches.source import Source

_NEG_INF = MaskNegInf()


class AuditCausalMask(AbstractRule):
    """A fill with -inf that leaves every row its diagonal (audit M1).

    What it finds: `masked_fill(mask, -inf)`, `torch.where(mask, x, -inf)`, `torch.full(size, -inf)` and `x[mask] = -inf`, unless NS401 says
    that a row may be empty.

    Why it is bad: in a causal mask it is not: every row keeps its diagonal, and exp(-inf) is exactly 0. The audit's remedy, -1e9, raises in
    float16, spreads a fully masked row over forbidden keys, and loses to a score below -1e9.

    Example:
        score = score.masked_fill(causal == 0, float("-inf"))

    Use instead:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)    # or keep it

    Fix safety: display. A note with the verdict.

    References: audit M1; torch.nn.functional.scaled_dot_product_attention.
    """

    code = "NS903"
    triggers = ("inf", "INF", "Inf")
    nodes = (cst.Call, cst.Assign)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.Assign):
            if isinstance(node.targets[0].target, cst.Subscript) and m.number(source, node.value) == -math.inf:
                yield self.hit(node)
            return
        found = masking.fill(source, node)
        if found is not None:
            value: cst.BaseExpression | None = found.value
        else:
            made = m.operation(source, node, "full", "full_like")
            value = made.argument(0, "fill_value") if made is not None else None
        if value is None or m.number(source, value) != -math.inf:
            return
        # Under --select AUDIT, NS401 is not asked: the line is the audit's in either case.
        if source.settings.audit or not any(True for _ in _NEG_INF.check(node, source)):
            yield self.hit(node)
