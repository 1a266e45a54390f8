"""NS108 log1p-expm1."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class Log1pExpm1(AbstractRule):
    """log(1 + x) and exp(x) - 1.

    What it finds: `log(1 + x)` and `exp(x) - 1` of tensors in one expression.

    Why it is bad: 1 + x rounds x away: below 6e-8 (float32) or 5e-4 (float16) the logarithm is 0, and exp(x) - 1
    is 0; relative accuracy is lost long before.

    Example:
        y = torch.log(1 + x)
        z = torch.exp(x) - 1

    Use instead:
        y = torch.log1p(x)
        z = torch.expm1(x)

    Fix safety: safe. The same function, exact to rounding where the old form had lost digits.

    References: torch.log1p, torch.expm1; Higham 2002, section 1.14.
    """

    code = "NS108"
    words = ("log", "exp")
    requires = (r"\+ *1\b|\b1(\.0*)? *\+|- *1\b",)
    nodes = (cst.Call, cst.BinaryOperation)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.Call):
            yield from self._log1p(node, source)
        elif isinstance(node, cst.BinaryOperation):
            yield from self._expm1(node, source)

    def _log1p(self, node: cst.Call, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log")
        if log is None or not log.plain or log.inplace:
            return
        x = m.one_plus(source, log.input)
        if x is None or m.operation(source, m.definition(source, x), "exp") is not None:
            return  # log(1 + exp(x)) is a softplus: NS103
        value = m.value_of(source, x)
        if value.is_integer or value.low >= 1 or value.origin == "constant" or value.kind in ("number", "numpy"):
            return
        if log.form == "method" or m.is_other(source, x):
            if m.is_other(source, x):
                return
            yield self.hit(node, *replace_with(node, f"{m.operand(source, x)}.log1p()"))
            return
        call, needs = m.sibling_call(source, node, "log1p")
        changed = call.with_changes(args=[call.args[0].with_changes(value=cst.parse_expression(m.argument(source, x)))])
        yield self.hit(node, *replace_with(node, source.code(changed), needs))

    def _expm1(self, node: cst.BinaryOperation, source: Source) -> Iterator[Hit]:
        sides = m.binary(node, "-")
        if sides is None or m.number(source, sides[1], defaults=False) != 1:
            return
        exp = m.operation(source, sides[0], "exp")
        if exp is None or not exp.plain or exp.inplace or exp.form == "module":
            return
        value = m.value_of(source, exp.input)
        if value.is_integer or value.origin == "constant" or value.kind in ("number", "numpy"):
            return
        call, needs = m.sibling_call(source, exp.node, "expm1")
        yield self.hit(node, *replace_with(node, source.code(call), needs))
