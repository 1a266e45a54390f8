"""NS107 log-exp."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import Edit, Unfixable
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class LogExp(AbstractRule):
    """The logarithm of an exponential.

    What it finds: `log(exp(x))`, also `std = exp(h)` followed by `log(std)`.

    Why it is bad: the way through exp loses what the logarithm asks for: inf above 88.7 in float32 (11.09 in
    float16), log(0) = -inf below -104 (-17), with NaN gradients, and rounding in between.

    Example:
        std = torch.exp(log_std)
        entropy = torch.log(std) + 1.4189

    Use instead:
        std = torch.exp(log_std)
        entropy = log_std + 1.4189

    Fix safety: safe. It is x itself, which is closer to the true value than the round trip.

    References: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 1.14.
    """

    code = "NS107"
    words = ("exp", "exp_")
    requires = (r"\blog\b",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log")
        if log is None or not log.plain or log.inplace:
            return
        exp = m.operation(source, m.definition(source, log.input), "exp")
        if exp is None or not exp.plain or exp.inplace:
            return
        value = m.value_of(source, exp.input)
        if value.kind in ("numpy", "number", "integer") or value.is_integer or not isinstance(node, cst.Call):
            return
        try:
            edits = self._fix(source, node, exp.input)
        except Unfixable:
            edits = ()
        yield self.hit(node, *edits)

    def _fix(self, source: Source, log: cst.Call, x: cst.BaseExpression) -> tuple[Edit, ...]:
        if source.is_inside(x, log):
            return replace_with(log, source.code(x))
        text, extra = m.reuse(source, x, "log_value")
        return (*replace_with(log, text), *extra)
