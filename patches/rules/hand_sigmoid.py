"""NS104 hand-sigmoid."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class HandSigmoid(AbstractRule):
    """A sigmoid written by hand.

    What it finds: `1 / (1 + exp(-x))`, `reciprocal(1 + exp(-x))` and `exp(x) / (1 + exp(x))`, also when a part has
    a local name.

    Why it is bad: where exp overflows (88.7 in float32, 11.09 in float16) the first form is 0 but its gradient is
    0 * inf = NaN, and the second is inf / inf = NaN.

    Example:
        gate = 1 / (1 + torch.exp(-x))

    Use instead:
        gate = torch.sigmoid(x)

    Fix safety: safe in one expression: the same function, computed on the side that does not overflow. Shown only
    where a part of it has a name of its own.

    References: torch.sigmoid.
    """

    code = "NS104"
    words = ("exp", "exp_")
    requires = (r"log1p|\+ *1\b|\b1(\.0*)? *\+",)
    nodes = (cst.BinaryOperation, cst.Call)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        sides = m.binary(node, "/")
        if sides is not None:
            numerator, denominator = sides
        else:
            reciprocal = m.operation(source, node, "reciprocal")
            if reciprocal is None or not reciprocal.plain:
                return
            numerator, denominator = None, reciprocal.input
        addend = m.one_plus(source, m.definition(source, denominator))
        exp = m.operation(source, m.definition(source, addend), "exp") if addend is not None else None
        if addend is None or exp is None or not exp.plain or exp.inplace:
            return
        z = exp.input
        assert isinstance(node, (cst.BinaryOperation, cst.Call))
        if numerator is None or m.number(source, numerator, defaults=False) == 1:
            text = m.negation(source, z)
        else:
            top = m.operation(source, m.definition(source, numerator), "exp")
            if top is None or not top.plain or not m.same(source, top.input, z):
                return
            text = m.argument(source, z)
        if not m.may_overflow_exp(source, z):
            return
        if source.is_inside(z, node):
            yield self.hit(node, *replace_with(node, *m.function_text(source, node, "torch.sigmoid", text)))
        else:
            yield self.hit(node)
