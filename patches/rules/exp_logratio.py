"""NS204 exp-logratio."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_LOG_PROBABILITY = re.compile(r"(?i)(?:^|_)(?:log_?(?:p|q|pi|prob|probs|likelihood|ratio|weight|weights|pdf|prior)s?|logp\w*|lp|logratio)(?:$|_|\d)")


class ExpLogratio(AbstractRule):
    """The exponential of a difference of log-probabilities.

    What it finds: `exp(logp - logp_old)` of values so named or made by log_prob or log_softmax, unless it is bounded.

    Why it is bad: policies that part drive the difference beyond 88.7 (float32) or 11.09 (float16): the ratio is inf,
    and min(inf * advantage, clipped) has a NaN gradient for an advantage of 0. PPO's own clip comes after the exp.

    Example:
        ratio = torch.exp(logp - logp_old)

    Use instead:
        ratio = torch.exp((logp - logp_old).clamp(-20, 20))

    Fix safety: shown only: how far the ratio may go is the algorithm's to say.

    References: Schulman et al. 2017 (arXiv:1707.06347).
    """

    code = "NS204"
    words = ("exp", "exp_")
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        exp = m.operation(source, node, "exp")
        if exp is None or not exp.plain or m.no_grad_at(source, node):
            return
        sides = m.binary(m.definition(source, exp.input), "-")
        if sides is None or not all(self._is_log_probability(source, side) for side in sides):
            return
        value = m.value_of(source, exp.input)
        if value.high <= m.exp_limit(source, value) or value.kind in ("numpy", "number") or value.dtype == "float64" or value.detached:
            return
        yield self.hit(node)

    @staticmethod
    def _is_log_probability(source: Source, node: cst.BaseExpression) -> bool:
        made = m.definition(source, node)
        if isinstance(made, cst.Call) and isinstance(made.func, cst.Attribute) and made.func.attr.value == "log_prob":
            return True
        if m.operation(source, made, "log_softmax") is not None:
            return True
        while isinstance(node, cst.Subscript):
            node = node.value
        while isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):  # old_logp.detach()
            node = node.func.value
        name = node.value if isinstance(node, cst.Name) else node.attr.value if isinstance(node, cst.Attribute) else ""
        return _LOG_PROBABILITY.search(name) is not None
