"""NS101 log-softmax."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import Unfixable
from patches.rules.base import AbstractRule, Hit
from patches.source import Source


class LogSoftmax(AbstractRule):
    """The logarithm of a softmax.

    What it finds: `log(softmax(x, dim))` in any spelling, direct or through one local name.

    Why it is bad: a probability below the dtype's smallest number is 0, its logarithm -inf and the
    gradient NaN. In float32 that is a logit 104 below the largest, in float16 17.

    Example:
        logp = torch.log(F.softmax(logits, dim=-1))

    Use instead:
        logp = F.log_softmax(logits, dim=-1)

    Fix safety: safe. The same function, computed as x - logsumexp(x); dim and dtype are kept. A layer
    or dropout inside the softmax is given a name first so that it still runs once.

    References: torch.nn.functional.log_softmax; Blanchard, Higham, Higham 2021, "Accurately computing
    the log-sum-exp and softmax functions", IMA J. Numer. Anal. 41.
    """

    code = "NS101"
    triggers = ("softmax", "Softmax")
    requires = (r"\blog(1p)?_?\b",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log")
        if log is None or not log.plain or log.inplace:
            return
        made = m.definition(source, log.input)
        softmax = m.operation(source, made, "softmax")
        if softmax is None or softmax.inplace:
            return
        try:
            edits = m.log_softmax_in_place_of(source, log.node, softmax, direct=made is log.input)
        except Unfixable:
            edits = ()
        yield self.hit(node, *edits)
