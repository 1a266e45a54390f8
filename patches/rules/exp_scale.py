"""NS202 exp-scale."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import AddImport, Edit, Replace
from patches.rules.base import AbstractRule, Hit
from patches.rules.exp_logvar import HALF_HIGH, HIGH, LOG_SCALE_NAME, ExpLogvar
from patches.source import Source

_SCALE_NAME = re.compile(r"(?i)(?:^|_)(?:log_?)?(?:scale|scaling|s|alpha|temperature|temp|gain)s?(?:$|_|\d)")


class ExpScale(AbstractRule):
    """The exponential of another raw network output.

    What it finds: `exp(self.net(x))` and the like, where the argument comes from a layer or a parameter, is not
    bounded, and is no log-variance by name (that is NS201). With `--select AUDIT` also a bounded scale, such as that
    of a coupling layer, since bounds compound through layers: e^3 a layer is e^96 over 32 of them.

    Why it is bad: a layer's output has no bound; above 88.7 (float32) or 11.09 (float16) the result is inf. Most
    sites of this form in public code are bounded by training in practice, hence off by default.

    Example:
        s = torch.exp(self.scale_net(h))

    Use instead:
        s = torch.exp(3 * torch.tanh(self.scale_net(h) / 3))     # or a clamp; the range is the author's to choose

    At a line that a run has seen overflow (`--from-report`) any such exponential is a finding, and is kept below
    exp(20) (float16: exp(10)) by a bound whose gradient returns, or with `--bound clamp` by a clamp.

    Fix safety: shown only: the range belongs to the model. The bound of a line that fired is unsafe.

    References: audit finding X5; Dinh, Sohl-Dickstein, Bengio 2017 (arXiv:1605.08803), section 4.1, which bounds it so.
    """

    code = "NS202"
    words = ("exp", "exp_")
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        exp = m.operation(source, node, "exp")
        if exp is None or not exp.plain or exp.form == "module":
            return
        value = m.value_of(source, exp.input)
        if value.is_integer or value.kind in ("numpy", "number", "other", "integer"):
            return
        if source.settings.audit:
            if (value.origin == "network" or self._is_called_scale(source, exp.input)) and not self._is_logvar(node, source):
                yield self.hit(node)
            return
        if source.settings.fired:
            if value.high > m.exp_limit(source, value) and not self._is_logvar(node, source):
                yield self.hit(node, *_bounded(source, exp.input), safety="unsafe", last_resort=True)
            return
        if value.high <= m.exp_limit(source, value) or value.origin not in ("network", "parameter") or value.detached or value.dtype == "float64":
            return
        if m.no_grad_at(source, node) or self._is_logvar(node, source):
            return
        yield self.hit(node)

    @staticmethod
    def _is_logvar(node: cst.CSTNode, source: Source) -> bool:
        return any(True for _ in ExpLogvar().check(node, source))

    @staticmethod
    def _is_called_scale(source: Source, node: cst.BaseExpression) -> bool:
        words = re.findall(r"[A-Za-z_]\w*", source.code(node))
        return any(_SCALE_NAME.search(word) or LOG_SCALE_NAME.search(word) for word in words)


def _bounded(source: Source, node: cst.BaseExpression) -> tuple[Edit, ...]:
    """The argument bounded from above."""
    high = HALF_HIGH if source.settings.dtype == "float16" or m.value_of(source, node).dtype == "float16" else HIGH
    if source.settings.bound == "clamp":
        return (Replace(node, f"{m.operand(source, node)}.clamp(max={high})"),)
    softplus = m.spell(source, node, "torch.nn.functional.softplus")
    imports = (AddImport(softplus.needs_import),) if softplus.needs_import is not None else ()
    return (Replace(node, f"{high} - {softplus.text}({high} - {m.operand(source, node)})"), *imports)
