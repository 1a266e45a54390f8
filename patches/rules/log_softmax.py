"""NS101 log-softmax."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import Edit, Unfixable
from patches.rules.base import AbstractRule, Hit, replace_with
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
            edits = self._fix(source, log.node, softmax, direct=made is log.input)
        except Unfixable:
            edits = ()
        yield self.hit(node, *edits)

    def _fix(self, source: Source, log: cst.Call, softmax: m.Operation, direct: bool) -> tuple[Edit, ...]:
        text, extra = (source.code(softmax.input), ()) if direct else m.reuse(source, softmax.input, "logits")
        if softmax.form == "module":
            dim = softmax.argument(0, "dim")
            if dim is None:
                raise Unfixable("nn.Softmax without a dim picks one by the number of axes")
            spelling = m.spell(source, log, "torch.nn.functional.log_softmax", "torch.log_softmax")
            return (*replace_with(log, f"{spelling.text}({text}, dim={source.code(dim)})", spelling.needs_import), *extra)
        call, needs = m.sibling_call(source, softmax.node, "log_softmax")
        if extra:
            call = cst.ensure_type(call.deep_replace(softmax.input, cst.parse_expression(text)), cst.Call)
        return (*replace_with(log, source.code(call), needs), *extra)
