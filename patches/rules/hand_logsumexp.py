"""NS106 hand-logsumexp."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class HandLogsumexp(AbstractRule):
    """A logsumexp written by hand, without subtracting the maximum.

    What it finds: `log(exp(x).sum(dim))` in any spelling, also when a part has a local name, and the same of a mean.

    Why it is bad: one entry above 88.7 (float32) or 11.09 (float16) makes it inf; all entries below -104 make it
    log(0) = -inf; the gradients are NaN.

    Example:
        z = torch.log(torch.sum(torch.exp(s), dim=1))

    Use instead:
        z = torch.logsumexp(s, dim=1)

    Fix safety: safe in one expression; a sum without a dim is over all entries, so the input is flattened. Shown
    only where a part has a name of its own, and for a mean, which also wants the log of the number of entries.

    References: torch.logsumexp; Blanchard, Higham, Higham 2021.
    """

    code = "NS106"
    words = ("exp", "exp_")
    requires = (r"\b(sum|mean)\b", r"\blog\b")
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log")
        if log is None or not log.plain or log.inplace:
            return
        total = m.operation(source, m.definition(source, log.input), "sum", "mean", result_is_tensor=True)
        if total is None or total.keyword("dtype", "out") is not None:
            return
        exp = m.operation(source, m.definition(source, total.input), "exp")
        if exp is None or not exp.plain or exp.inplace:
            return
        if not m.may_overflow_exp(source, exp.input):
            return
        positional = [a.value for a in total.rest if a.keyword is None]
        if len(positional) > 2 or (len(positional) == 2 and not (isinstance(positional[1], cst.Name) and positional[1].value in ("True", "False"))):
            return
        if total.name == "mean":
            yield self.hit(
                node, message="log of a mean of exponentials overflows, and is log(0) when all entries underflow; use logsumexp(x, dim) - log(n)"
            )
            return
        if not source.is_inside(exp.node, node):
            yield self.hit(node)
            return
        dim, keepdim = total.argument(0, "dim", "axis"), total.argument(1, "keepdim", "keepdims")
        keep = (f"keepdim={source.code(keepdim)}",) if keepdim is not None else ()
        if dim is None and keepdim is not None:
            yield self.hit(node)
            return
        if dim is None:
            arguments: tuple[str, ...] = (f"{m.operand(source, exp.input)}.flatten()", "dim=0")
        else:
            arguments = (m.argument(source, exp.input), f"dim={source.code(dim)}", *keep)
        yield self.hit(node, *replace_with(node, *m.function_text(source, node, "torch.logsumexp", *arguments)))
