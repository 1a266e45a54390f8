"""The guards, one file per hazard, in one explicit list: a new guard is a file here and a line below."""

from __future__ import annotations

from instrument.guards.base import AbstractGuard, Spelling
from instrument.guards.division import DivisionGuard
from instrument.guards.exp import ExpGuard
from instrument.guards.inverse_function import AngleGuard, InverseFunctionGuard
from instrument.guards.log import LogGuard
from instrument.guards.pole import PoleGuard, XLogYGuard
from instrument.guards.reciprocal import ReciprocalGuard
from instrument.guards.root import HypotGuard, RootGuard
from instrument.guards.softmax import SoftmaxGuard

OPERATION_GUARDS: tuple[AbstractGuard, ...] = (
    ExpGuard(),
    SoftmaxGuard(),
    LogGuard(),
    DivisionGuard(),
    ReciprocalGuard(),
    RootGuard(),
    HypotGuard(),
    InverseFunctionGuard(),
    AngleGuard(),
    PoleGuard(),
    XLogYGuard(),
)
"""Guards of single operations. Optimizers and backward have seams of their own: `step` and `backward`."""

__all__ = ["OPERATION_GUARDS", "AbstractGuard", "Spelling"]
