"""NS109 tanh-logdet."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import Edit, Unfixable
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source

_LOG_2 = "0.6931471805599453"


class TanhLogdet(AbstractRule):
    """The log-derivative of tanh from its output.

    What it finds: `log(1 - tanh(x)**2)`, with or without an epsilon added, also when tanh(x) has a local name.

    Why it is bad: tanh(x) rounds to 1 from |x| = 9 in float32 (4.9 in float16): the logarithm is -inf and its
    gradient NaN. An epsilon replaces that by a floor: log(1e-6) = -13.8 where the truth is -2|x|, and no gradient.

    Example:
        y = torch.tanh(x)
        log_det = torch.log(1 - y.pow(2) + 1e-6)

    Use instead:
        y = torch.tanh(x)
        log_det = 2 * (0.6931471805599453 - x - F.softplus(-2 * x))      # log 2 = 0.693...

    Fix safety: safe without an epsilon. With one it is unsafe: the epsilon's bias disappears, so values change.

    References: Haarnoja et al. 2018 (arXiv:1801.01290), appendix C; the form is that of TanhTransform in torch.distributions.
    """

    code = "NS109"
    triggers = ("tanh", "Tanh")
    requires = (r"\blog(1p)?_?\b",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log", "log1p")
        if log is None or not log.plain or log.inplace:
            return
        inner = m.definition(source, log.input)
        guarded = False
        if log.name == "log1p":
            square = m.negated(source, inner)
        else:
            inner, guarded = self._without_epsilon(source, inner)
            square = m.one_minus(source, inner)
        y = m.power_of(source, m.definition(source, square), 2) if square is not None else None
        tanh = m.operation(source, m.definition(source, y), "tanh") if y is not None else None
        if tanh is None or not tanh.plain or tanh.inplace:
            return
        value = m.value_of(source, tanh.input)
        if value.is_integer or (value.is_bounded and max(-value.low, value.high) <= 4):
            return
        try:
            edits = self._fix(source, log.node, tanh.input)
        except Unfixable:
            edits = ()
        yield self.hit(node, *edits, safety=("unsafe" if guarded else "safe") if edits else "display")

    def _without_epsilon(self, source: Source, node: cst.BaseExpression) -> tuple[cst.BaseExpression, bool]:
        sides = m.binary(node, "+")
        if sides is not None:
            for main, rest in (sides, sides[::-1]):
                added = m.number(source, rest)
                if (added is not None and 0 < added <= 1e-2) or (added is None and m.is_epsilon_name(rest)):
                    return main, True
        found = m.operation(source, node, "clamp", "clamp_min", "relu", result_is_tensor=True)
        if found is not None and found.name != "relu" and m.number(source, found.argument(0, "min")) is not None:
            return found.input, True
        return node, False

    def _fix(self, source: Source, log: cst.Call, x: cst.BaseExpression) -> tuple[Edit, ...]:
        extra: tuple[Edit, ...] = ()
        if m.is_pure(source, x):
            text = m.operand(source, x)
        elif source.is_inside(x, log):
            raise Unfixable("the argument would be computed twice")
        else:
            text, extra = m.reuse(source, x, "pre_tanh")
        softplus, needs = m.function_text(source, log, "torch.nn.functional.softplus", f"-2 * {text}")
        return (*replace_with(log, f"2 * ({_LOG_2} - {text} - {softplus})", needs), *extra)
