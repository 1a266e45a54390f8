"""NS205 log-nonpositive."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source


class LogNonpositive(AbstractRule):
    """The logarithm of a value that training can push to 0 or below.

    What it finds: `log(self.sigma)` of a raw parameter or of a layer's output, and `log(p * q)` of two probabilities.

    Why it is bad: nothing keeps a parameter positive: at 0 the logarithm is -inf, below it NaN. A product of
    probabilities underflows where the sum of their logarithms does not.

    Example:
        self.sigma = nn.Parameter(torch.ones(3))
        nll = torch.log(self.sigma) + ...

    Use instead:
        self.log_sigma = nn.Parameter(torch.zeros(3))
        nll = self.log_sigma + ...

    Fix safety: shown only: it changes what is learnt, and what a checkpoint holds.

    References: Kingma and Welling 2014 (arXiv:1312.6114), appendix C.2, which parametrises the logarithm.
    """

    code = "NS205"
    words = ("log", "log2", "log10")
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log", "log2", "log10")
        if log is None or not log.plain or log.inplace or m.no_grad_at(source, node):
            return
        value = m.value_of(source, log.input)
        if value.kind in ("numpy", "number", "integer", "other") or value.is_integer or value.detached:
            return
        if value.low <= 0 and value.low == -float("inf") and value.origin in ("parameter", "network"):
            yield self.hit(node)
            return
        sides = m.binary(m.definition(source, log.input), "*")
        if sides is None:
            return
        ranges = [m.value_of(source, side) for side in sides]
        if all((r.low, r.high) == (0, 1) and r.kind == "tensor" for r in ranges):
            yield self.hit(node)
