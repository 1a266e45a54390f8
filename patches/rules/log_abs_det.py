"""NS703 log-abs-det."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class LogAbsDet(AbstractRule):
    """The logarithm of a determinant.

    What it finds: `log(abs(det(A)))` and `log(det(A))` in any spelling, direct or through local names.

    Why it is bad: a determinant is a product of n pivots: for a 100 x 100 matrix with entries of size 1e-1 it underflows to 0 in float32
    and its logarithm is -inf; with entries of size 10 it overflows. Without the abs a negative determinant is NaN.

    Example:
        log_det = torch.log(torch.abs(torch.det(A)))

    Use instead:
        log_det = torch.linalg.slogdet(A).logabsdet

    Fix safety: safe. The same number to rounding wherever the old one was finite, computed as the sum of the logarithms of the
    pivots. A negative determinant without an abs gave NaN and now gives log |det|.

    References: torch.linalg.slogdet; Higham 2002, section 14.6.
    """

    code = "NS703"
    triggers = ("det(",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log", result_is_tensor=True)
        if log is None or not log.plain or log.inplace:
            return
        inner = m.definition(source, log.input)
        absolute = m.operation(source, inner, "abs", result_is_tensor=True)
        if absolute is not None:
            inner = m.definition(source, absolute.input)
        elif isinstance(inner, cst.Call) and isinstance(inner.func, cst.Name) and inner.func.value == "abs" and len(inner.args) == 1:
            inner = m.definition(source, inner.args[0].value)
        det = m.operation(source, inner, "det", "linalg.det", result_is_tensor=True)
        if det is None or not det.plain or det.inplace or m.is_other(source, det.input):
            return
        if not m.is_pure(source, det.input) and not source.is_inside(det.node, node):
            yield self.hit(node)
            return
        spelling = m.spell(source, node, "torch.linalg.slogdet")
        yield self.hit(node, *replace_with(node, f"{spelling.text}({m.argument(source, det.input)}).logabsdet", spelling.needs_import))
