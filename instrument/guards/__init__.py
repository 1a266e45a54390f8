"""The guards, one file per hazard, in one explicit list: a new guard is a file here and a line below."""

from __future__ import annotations

from instrument.guards.base import AbstractGuard, Spelling
from instrument.guards.determinant import DeterminantGuard
from instrument.guards.distribution import DistributionGuard
from instrument.guards.division import DivisionGuard
from instrument.guards.exp import ExpGuard
from instrument.guards.factorization import FactorizationGuard
from instrument.guards.fill_value import FillValueGuard
from instrument.guards.half_precision import HalfPrecisionGuard
from instrument.guards.inverse_function import AngleGuard, InverseFunctionGuard
from instrument.guards.log import LogGuard
from instrument.guards.logsumexp import LogAddExpGuard, LogSumExpGuard
from instrument.guards.loss import LossGuard
from instrument.guards.matrix_power import MatrixPowerGuard
from instrument.guards.narrowing import NarrowingGuard
from instrument.guards.native_attention import NativeAttentionGuard
from instrument.guards.norm import NormGuard
from instrument.guards.pole import PoleGuard, XLogYGuard
from instrument.guards.power import PowerGuard
from instrument.guards.probability import MultinomialGuard, ProbabilityGuard
from instrument.guards.product import ProductGuard
from instrument.guards.reciprocal import ReciprocalGuard
from instrument.guards.root import HypotGuard, RootGuard
from instrument.guards.similarity import SimilarityGuard
from instrument.guards.softmax import AttentionPrecisionGuard, SoftmaxGuard
from instrument.guards.spectrum import SpectrumGuard
from instrument.guards.statistic import EmptyMeanGuard, StatisticGuard

OPERATION_GUARDS: tuple[AbstractGuard, ...] = (
    ExpGuard(),
    SoftmaxGuard(),
    LogGuard(),
    DivisionGuard(),
    ReciprocalGuard(),
    PowerGuard(),
    RootGuard(),
    HypotGuard(),
    NormGuard(),
    SimilarityGuard(),
    StatisticGuard(),
    EmptyMeanGuard(),
    ProductGuard(),
    LogSumExpGuard(),
    LogAddExpGuard(),
    InverseFunctionGuard(),
    AngleGuard(),
    PoleGuard(),
    XLogYGuard(),
    SpectrumGuard(),
    DeterminantGuard(),
    MatrixPowerGuard(),
    FactorizationGuard(),
    ProbabilityGuard(),
    MultinomialGuard(),
    DistributionGuard(),
    FillValueGuard(),
    LossGuard(),
    NativeAttentionGuard(),
    HalfPrecisionGuard(),
    NarrowingGuard(),
    AttentionPrecisionGuard(),
)
"""Guards of single operations. Optimizers and backward have seams of their own: `step` and `backward`."""

__all__ = ["OPERATION_GUARDS", "AbstractGuard", "Spelling"]
