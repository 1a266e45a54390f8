"""NS105 hand-softmax."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class HandSoftmax(AbstractRule):
    """A softmax written by hand, without subtracting the maximum.

    What it finds: `exp(x) / exp(x).sum(dim, keepdim=True)` in any spelling, also when the exponential has a local name.

    Why it is bad: exp overflows above 88.7 (float32) or 11.09 (float16) and gives inf / inf = NaN; below -104 all
    entries are 0 and the result is 0 / 0.

    Example:
        w = torch.exp(s) / torch.exp(s).sum(-1, keepdim=True)

    Use instead:
        w = torch.softmax(s, dim=-1)

    Fix safety: safe in one expression; a sum without a dim is over all entries, so the input is flattened and
    brought back. Shown only where the exponential has a name of its own.

    References: torch.softmax; Blanchard, Higham, Higham 2021.
    """

    code = "NS105"
    words = ("exp", "exp_")
    requires = (r"\bsum\b",)
    nodes = (cst.BinaryOperation,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        sides = m.binary(node, "/")
        if sides is None:
            return
        numerator, denominator = sides
        top = m.operation(source, m.definition(source, numerator), "exp")
        if top is None or not top.plain or top.inplace:
            return
        total = m.operation(source, m.definition(source, denominator), "sum", result_is_tensor=True)
        if total is None:
            return
        summed = m.operation(source, m.definition(source, total.input), "exp")
        if summed is None or not summed.plain or not m.same(source, top.input, summed.input):
            return
        if not m.may_overflow_exp(source, top.input):
            return
        dim, keepdim = total.argument(0, "dim", "axis"), total.argument(1, "keepdim", "keepdims")
        kept = isinstance(keepdim, cst.Name) and keepdim.value == "True"
        index = m.number(source, dim, defaults=False) if dim is not None else None
        if dim is not None and (index is None or not (kept or index == 0)):
            return  # several axes, or a sum that does not line up with the entries it was taken over
        assert isinstance(node, cst.BinaryOperation)
        if not (source.is_inside(top.node, node) and source.is_inside(summed.node, node)):
            yield self.hit(node)
            return
        x = m.operand(source, top.input)
        if dim is not None:
            text, needs = m.function_text(source, node, "torch.softmax", m.argument(source, top.input), f"dim={source.code(dim)}")
        elif keepdim is not None:
            return
        else:
            if not m.is_pure(source, top.input):
                yield self.hit(node)
                return
            text, needs = m.function_text(source, node, "torch.softmax", f"{x}.flatten()", "dim=0")
            text = f"{text}.reshape({x}.shape)"
        yield self.hit(node, *replace_with(node, text, needs))
