"""NS103 hand-softplus."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import Edit, Unfixable
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class HandSoftplus(AbstractRule):
    """A softplus written by hand.

    What it finds: `log(1 + exp(x))` and `log1p(exp(x))`, direct or through local names, unless x is proven to be small.

    Why it is bad: exp(x) overflows above 88.7 (float32) or 11.09 (float16), also in the log1p form; the value is
    inf and the gradient NaN where softplus is simply x.

    Example:
        y = torch.log(1 + torch.exp(x))

    Use instead:
        y = F.softplus(x)

    Fix safety: safe. softplus returns x itself above 20, which is exact to rounding up to float32 but off by
    7.6e-10 in float64: where float64 is in sight, logaddexp(x, 0) is written instead.

    References: torch.nn.functional.softplus (threshold); Maechler 2012.
    """

    code = "NS103"
    words = ("exp", "exp_")
    requires = (r"log1p|\+ *1\b|\b1(\.0*)? *\+",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log", "log1p")
        if log is None or not log.plain or log.inplace:
            return
        inner = m.definition(source, log.input)
        addend = m.one_plus(source, inner) if log.name == "log" else inner
        if addend is None:
            return
        exp = m.operation(source, m.definition(source, addend), "exp")
        if exp is None or not exp.plain or exp.inplace:
            return
        if not m.may_overflow_exp(source, exp.input):
            return
        try:
            edits = self._fix(source, log.node, exp.input)
        except Unfixable:
            edits = ()
        yield self.hit(node, *edits)

    def _fix(self, source: Source, log: cst.Call, x: cst.BaseExpression) -> tuple[Edit, ...]:
        extra: tuple[Edit, ...] = ()
        text = m.argument(source, x)
        if not source.is_inside(x, log):
            text, extra = m.reuse(source, x, "logits")
        if not m.is_double_in_sight(source, x):
            return (*replace_with(log, *m.function_text(source, log, "torch.nn.functional.softplus", text)), *extra)
        if not m.is_pure(source, x) and not extra:
            raise Unfixable("logaddexp needs the argument twice")
        zero, needs_zero = m.function_text(source, log, "torch.zeros_like", text)
        result, needs = m.function_text(source, log, "torch.logaddexp", text, zero)
        return (*replace_with(log, result, needs, needs_zero), *extra)
