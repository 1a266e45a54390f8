"""The rules, one explicit list. Importing this package loads libcst; `patches.findings` does not."""

from __future__ import annotations

from patches.rules.base import AbstractRule, Hit
from patches.rules.exp_then_clamp import ExpThenClamp
from patches.rules.log_softmax import LogSoftmax
from patches.rules.sumsq_sqrt import SumsqSqrt

RULES: tuple[AbstractRule, ...] = (
    LogSoftmax(),
    SumsqSqrt(),
    ExpThenClamp(),
)
"""Every rule, in the order of the codes; a code appears again only with another `revision`."""

__all__ = ["RULES", "AbstractRule", "Hit"]
