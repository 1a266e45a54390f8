"""The rules, one explicit list. Importing this package loads libcst; `patches.findings` does not."""

from __future__ import annotations

from patches.rules.atanh_logit import AtanhLogit
from patches.rules.base import AbstractRule, Hit
from patches.rules.entropy import Entropy
from patches.rules.exp_logratio import ExpLogratio
from patches.rules.exp_logvar import ExpLogvar
from patches.rules.exp_scale import ExpScale
from patches.rules.exp_then_clamp import ExpThenClamp
from patches.rules.hand_logsumexp import HandLogsumexp
from patches.rules.hand_sigmoid import HandSigmoid
from patches.rules.hand_softmax import HandSoftmax
from patches.rules.hand_softplus import HandSoftplus
from patches.rules.log1p_expm1 import Log1pExpm1
from patches.rules.log_exp import LogExp
from patches.rules.log_nonpositive import LogNonpositive
from patches.rules.log_prod import LogProd
from patches.rules.log_sigmoid import LogSigmoid
from patches.rules.log_softmax import LogSoftmax
from patches.rules.sumsq_sqrt import SumsqSqrt
from patches.rules.tanh_logdet import TanhLogdet

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
)
"""Every rule, in the order of the codes; a code appears again only with another `revision`."""

__all__ = ["RULES", "AbstractRule", "Hit"]
