"""The guards, one file per hazard, in one explicit list: a new guard is a file here and a line below."""

from __future__ import annotations

from instrument.guards.base import AbstractGuard, Spelling
from instrument.guards.exp import ExpGuard
from instrument.guards.log import LogGuard
from instrument.guards.softmax import SoftmaxGuard

OPERATION_GUARDS: tuple[AbstractGuard, ...] = (ExpGuard(), SoftmaxGuard(), LogGuard())
"""Guards of single operations. Optimizers and backward have seams of their own: `step` and `backward`."""

__all__ = ["OPERATION_GUARDS", "AbstractGuard", "Spelling"]
