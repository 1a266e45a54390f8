"""NS102 log-sigmoid."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import Edit, Unfixable
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class LogSigmoid(AbstractRule):
    """The logarithm of a sigmoid, or of one minus a sigmoid.

    What it finds: `log(sigmoid(x))`, `log(1 - sigmoid(x))`, `log1p(-sigmoid(x))` in any spelling, direct or
    through one local name.

    Why it is bad: sigmoid(x) is 0 below -104 in float32 (-17 in float16) and 1 above 17 (8): the logarithm is
    -inf there, exactly for the worst errors, and its gradient NaN.

    Example:
        loss = -(y * torch.log(torch.sigmoid(x)) + (1 - y) * torch.log(1 - torch.sigmoid(x)))

    Use instead:
        loss = -(y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x))

    Fix safety: safe. The same function: log(1 - sigmoid(x)) = logsigmoid(-x). A layer inside the sigmoid is
    given a name first so that it still runs once.

    References: torch.nn.functional.logsigmoid; Maechler 2012, "Accurately computing log(1 - exp(-|a|))".
    """

    code = "NS102"
    triggers = ("sigmoid", "Sigmoid", "expit")
    requires = (r"\blog(1p)?_?\b",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log", "log1p")
        if log is None or not log.plain or log.inplace:
            return
        inner = m.definition(source, log.input)
        if log.name == "log1p":
            complement = m.negated(source, inner)
        else:
            complement = m.one_minus(source, inner)
        if log.name == "log1p" and complement is None:
            return
        probability = inner if complement is None else m.definition(source, complement)
        sigmoid = m.operation(source, probability, "sigmoid")
        if sigmoid is None or sigmoid.inplace or not sigmoid.plain or m.value_of(source, sigmoid.input).is_integer:
            return  # logsigmoid takes no integers
        try:
            edits = self._fix(source, log.node, sigmoid, negate=complement is not None)
        except Unfixable:
            edits = ()
        yield self.hit(node, *edits)

    def _fix(self, source: Source, log: cst.Call, sigmoid: m.Operation, negate: bool) -> tuple[Edit, ...]:
        x = sigmoid.input
        extra: tuple[Edit, ...] = ()
        text = m.argument(source, x)
        if not source.is_inside(x, log):
            text, extra = m.reuse(source, x, "logits")
        if negate:
            text = m.negation(source, x) if not extra else f"-{text}"
        return (*replace_with(log, *m.function_text(source, log, "torch.nn.functional.logsigmoid", text)), *extra)
