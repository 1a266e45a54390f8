"""NS904 audit-softmax."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source


class AuditSoftmax(AbstractRule):
    """A softmax without a subtracted maximum (audit S1).

    What it finds: a call of torch's softmax, as a function, method or module.

    Why it is bad: it is not: torch subtracts the maximum itself, and softmax of 1e4 and 0 is exactly 1 and 0. Subtracting it by hand as
    well is one more rounding. What does go wrong is a row without a finite entry: NS401.

    Example:
        attention = F.softmax(score, dim=-1)

    Use instead:
        attention = F.softmax(score, dim=-1)    # as it is

    Fix safety: display. A note with the verdict.

    References: audit S1; Blanchard, Higham, Higham 2021, IMA J. Numer. Anal. 41 (the shifted form torch uses).
    """

    code = "NS904"
    triggers = ("softmax", "Softmax")
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        found = m.operation(source, node, "softmax")
        if found is None:
            return
        argument = m.definition(source, found.input)
        if m.value_of(source, argument).high <= 0:  # the maximum, or the log of a sum, has been subtracted
            return
        yield self.hit(found.node)
