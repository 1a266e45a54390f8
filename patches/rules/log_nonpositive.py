"""NS205 log-nonpositive."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import dtypes
from patches import matching as m
from patches.edits import AddImport, Edit, Replace
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

    At a line that a run has seen take the log of 0 (`--from-report`), any logarithm without a stable form is a finding,
    and its argument is kept at the smallest normal number or more: the loss stays finite, and where the bound holds
    the gradient is 0.

    Fix safety: shown only: it changes what is learnt, and what a checkpoint holds. The bound of a line that fired is unsafe.

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
        if source.settings.fired:
            if m.operation(source, m.definition(source, log.input), "clamp", "clamp_min") is not None:
                return
            yield self.hit(node, *_kept_positive(source, log.input), safety="unsafe", last_resort=True)
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


def _kept_positive(source: Source, node: cst.BaseExpression) -> tuple[Edit, ...]:
    """`x.clamp(min=tiny)` in place of x, with the tiny of x's dtype where it has a name, else of float32 (and bfloat16)."""
    carrier = dtypes.carrier(source, node) if dtypes.is_floating(source, node) else None
    finfo = m.spell(source, node, "torch.finfo")
    if carrier is not None:
        dtype = f"{carrier}.dtype"
    elif m.is_half_in_sight(source):
        return ()
    else:
        dtype = m.spell(source, node, "torch.float32").text
    imports = (AddImport(finfo.needs_import),) if finfo.needs_import is not None else ()
    return (Replace(node, f"{m.operand(source, node)}.clamp(min={finfo.text}({dtype}).tiny)"), *imports)
