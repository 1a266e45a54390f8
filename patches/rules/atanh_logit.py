"""NS111 atanh-logit."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class AtanhLogit(AbstractRule):
    """atanh and logit written by hand.

    What it finds: `0.5 * log((1 + x) / (1 - x))`, `0.5 * (log(1 + x) - log(1 - x))`, `log(x / (1 - x))`,
    `log(x) - log(1 - x)`, unless x is proven to stay inside the open interval.

    Why it is bad: the quotient cancels near 0 and divides by zero at the end; log(0) is -inf with a NaN gradient.
    tanh and sigmoid of float32 reach their ends exactly from about 9 and 17 on.

    Example:
        u = 0.5 * torch.log((1 + y) / (1 - y))
        z = torch.log(p / (1 - p))

    Use instead:
        u = torch.atanh(y)
        z = torch.logit(p, eps=torch.finfo(p.dtype).eps)

    Fix safety: atanh is safe: the same function. logit with eps is unsafe: probabilities within eps of 0 and 1 move.

    References: torch.atanh, torch.logit.
    """

    code = "NS111"
    words = ("log",)
    requires = (r"\b1(\.0*)? *-",)
    nodes = (cst.BinaryOperation, cst.Call)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, (cst.BinaryOperation, cst.Call))
        half = self._halved(source, node)
        if half is not None:
            x = self._ratio_of(source, half, m.one_plus)
            if x is not None and self._is_open(source, x, -1.0):
                yield self.hit(node, *replace_with(node, *m.function_text(source, node, "torch.atanh", m.argument(source, x))), safety="safe")
            return
        p = self._ratio_of(source, node, lambda _, numerator: numerator)
        if p is None or not self._is_open(source, p, 0.0):
            return
        if not m.is_pure(source, p):
            yield self.hit(node)
            return
        finfo, needs_finfo = m.function_text(source, node, "torch.finfo", f"{m.operand(source, p)}.dtype")
        text, needs = m.function_text(source, node, "torch.logit", m.argument(source, p), f"eps={finfo}.eps")
        yield self.hit(node, *replace_with(node, text, needs, needs_finfo), safety="unsafe")

    @staticmethod
    def _is_open(source: Source, x: cst.BaseExpression, low: float) -> bool:
        made = m.definition(source, x)
        if isinstance(made, cst.BinaryOperation) and re.search(r"\brand(_like)?\(", source.code(made)) is not None:
            return False  # uniform noise that its author has moved off the ends
        value = m.value_of(source, x)
        inside = value.low > low and value.high < 1
        return not inside and not value.is_integer and value.kind not in ("numpy", "number", "integer", "other")

    @staticmethod
    def _halved(source: Source, node: cst.BaseExpression) -> cst.BaseExpression | None:
        sides = m.binary(node, "*")
        if sides is not None:
            for factor, rest in (sides, sides[::-1]):
                if m.number(source, factor, defaults=False) == 0.5:
                    return rest
        sides = m.binary(node, "/")
        if sides is not None and m.number(source, sides[1], defaults=False) == 2:
            return sides[0]
        return None

    @staticmethod
    def _ratio_of(source: Source, node: cst.BaseExpression, read: object) -> cst.BaseExpression | None:
        """x of log(read(x) / (1 - x)) or log(read(x)) - log(1 - x)."""
        log = m.operation(source, node, "log")
        if log is not None and log.plain:
            sides = m.binary(m.definition(source, log.input), "/")
        else:
            difference = m.binary(node, "-")
            if difference is None:
                return None
            logs = [m.operation(source, side, "log") for side in difference]
            sides = (logs[0].input, logs[1].input) if logs[0] is not None and logs[1] is not None else None
        if sides is None or not callable(read):
            return None
        top = read(source, sides[0])
        bottom = m.one_minus(source, sides[1])
        if top is None or bottom is None or not m.same(source, top, bottom):
            return None
        return bottom if isinstance(bottom, cst.BaseExpression) else None
