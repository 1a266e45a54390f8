"""Which steps need a copy to fall back on: those whose update could spoil a parameter although its gradients are finite.

torch's own optimizers cannot with ordinary numbers in float32 and float64. What remains is in this list; of other optimizers nothing is known.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks

from instrument.recovery.state import state_tensors
from instrument.runtime import HALVES
from latent_drift.numerics.finite import is_finite

HUGE_UPDATE = 1e12
"""A learning rate times the gradient norm from which an update is not trusted: far from any training, far from float32's end as well."""

HUGE_NORM = 1e18
"""A gradient norm whose square nears the end of float32 (3.4e38): second moments overflow there, silently, and their elements never move again."""

OUR_HOOKS = 1


def is_risky(optimizer: Optimizer, norm: float, *, bounded: bool, first: bool) -> bool:
    """Whether this step needs a copy of what it may spoil.

    Args:
        norm: the global norm of the gradients as the step will see them.
        bounded: the config bounds updates, which needs what was there before.
        first: the optimizer has not stepped in this run yet: what its state holds is not known.
    """
    if bounded or not norm < HUGE_NORM or not type(optimizer).__module__.startswith("torch."):
        return True
    if getattr(optimizer, "_optimizer_step_pre_hooks", None) or len(_global_optimizer_pre_hooks) > OUR_HOOKS:
        return True  # hooks may do anything to the gradients that were judged before them
    if first and not all(is_finite(x) for x in state_tensors(optimizer)):
        return True
    for group in optimizer.param_groups:
        if _is_risky_group(group, norm):
            return True
    return False


def _is_risky_group(group: dict[str, Any], norm: float) -> bool:
    rate = group.get("lr", 0.0)
    if rate.__class__ is not float:
        # One on an accelerator is not worth a read.
        rate = 1.0 if isinstance(rate, Tensor) and not rate.is_cpu else float(rate)
    rate = abs(rate)
    if not (rate < HUGE_UPDATE and rate * norm < HUGE_UPDATE) or group.get("eps", 1.0) == 0:
        return True
    # What multiplies itself from step to step: decay beyond 2 / lr, momentum and averages with a factor above 1.
    decay, momentum, alpha = group.get("weight_decay", 0.0), group.get("momentum", 0.0), group.get("alpha", 0.0)
    if not rate * abs(decay if decay.__class__ is float else _number(decay)) <= 1.0:
        return True
    if not abs(momentum if momentum.__class__ is float else _number(momentum)) < 1.0:
        return True
    if not (alpha if alpha.__class__ is float else _number(alpha)) <= 1.0:
        return True
    params = group["params"]
    return bool(params) and params[0].dtype in HALVES


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def largest_rate(optimizer: Optimizer) -> float:
    """The largest learning rate of the groups, by magnitude; 0 where none can be read."""
    rates = [group.get("lr", 0.0) for group in optimizer.param_groups]
    known = [abs(float(r)) for r in rates if isinstance(r, int | float) or (isinstance(r, Tensor) and r.is_cpu and r.numel() == 1)]
    return max((r for r in known if not math.isnan(r)), default=0.0)
