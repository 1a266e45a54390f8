"""The rules, one explicit list. Importing this package loads libcst; `patches.findings` does not."""

from __future__ import annotations

from patches.rules.amp_api import AmpApi
from patches.rules.atanh_logit import AtanhLogit
from patches.rules.audit_causal_mask import AuditCausalMask
from patches.rules.audit_epsilon import AuditEpsilon
from patches.rules.audit_init import AuditInit
from patches.rules.audit_scale import AuditScale
from patches.rules.audit_softmax import AuditSoftmax
from patches.rules.audit_sqrt_step import AuditSqrtStep
from patches.rules.autocast_no_scaler import AutocastNoScaler
from patches.rules.backward_in_autocast import BackwardInAutocast
from patches.rules.base import AbstractRule, Hit
from patches.rules.bce_on_probabilities import BceOnProbabilities
from patches.rules.clip_order import ClipOrder
from patches.rules.clip_without_unscale import ClipWithoutUnscale
from patches.rules.div_norm import DivNorm
from patches.rules.entropy import Entropy
from patches.rules.eps_zero_half import EpsZeroHalf
from patches.rules.exp_logratio import ExpLogratio
from patches.rules.exp_logvar import ExpLogvar
from patches.rules.exp_scale import ExpScale
from patches.rules.exp_then_clamp import ExpThenClamp
from patches.rules.hand_logsumexp import HandLogsumexp
from patches.rules.hand_sigmoid import HandSigmoid
from patches.rules.hand_softmax import HandSoftmax
from patches.rules.hand_softplus import HandSoftplus
from patches.rules.hidden_nan import HiddenNan
from patches.rules.inverse_matmul import InverseMatmul
from patches.rules.log1p_expm1 import Log1pExpm1
from patches.rules.log_abs_det import LogAbsDet
from patches.rules.log_exp import LogExp
from patches.rules.log_nonpositive import LogNonpositive
from patches.rules.log_prod import LogProd
from patches.rules.log_sigmoid import LogSigmoid
from patches.rules.log_softmax import LogSoftmax
from patches.rules.mask_half_overflow import MaskHalfOverflow
from patches.rules.mask_mul_inf import MaskMulInf
from patches.rules.mask_neg_inf import MaskNegInf
from patches.rules.masked_write_lost import MaskedWriteLost
from patches.rules.naive_variance import NaiveVariance
from patches.rules.no_clip import NoClip
from patches.rules.one_minus_eps import OneMinusEps
from patches.rules.probs_distribution import ProbsDistribution
from patches.rules.sumsq_sqrt import SumsqSqrt
from patches.rules.tanh_logdet import TanhLogdet
from patches.rules.uninitialised_parameter import UninitialisedParameter

RULES: tuple[AbstractRule, ...] = (
    LogSoftmax(),
    LogSigmoid(),
    HandSoftplus(),
    HandSigmoid(),
    HandSoftmax(),
    HandLogsumexp(),
    LogExp(),
    Log1pExpm1(),
    TanhLogdet(),
    SumsqSqrt(),
    AtanhLogit(),
    LogProd(),
    Entropy(),
    ExpLogvar(),
    ExpScale(),
    ExpThenClamp(),
    ExpLogratio(),
    LogNonpositive(),
    EpsZeroHalf(),
    OneMinusEps(),
    DivNorm(),
    MaskNegInf(),
    MaskHalfOverflow(),
    MaskMulInf(),
    MaskedWriteLost(),
    NoClip(),
    ClipWithoutUnscale(),
    ClipOrder(),
    BackwardInAutocast(),
    AutocastNoScaler(),
    AmpApi(),
    BceOnProbabilities(),
    ProbsDistribution(),
    NaiveVariance(),
    InverseMatmul(),
    LogAbsDet(),
    UninitialisedParameter(),
    HiddenNan(),
    AuditEpsilon(),
    AuditInit(),
    AuditCausalMask(),
    AuditSoftmax(),
    AuditScale(),
    AuditSqrtStep(),
)
"""Every rule, in the order of the codes; a code appears again only with another `revision`."""

__all__ = ["RULES", "AbstractRule", "Hit"]
