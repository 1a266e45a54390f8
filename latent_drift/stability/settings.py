"""The values that the toolbox takes from the active config, per dtype, as plain numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from latent_drift.config.active import active
from latent_drift.numerics.bounds import Outside
from latent_drift.numerics.dtypes import require_real
from latent_drift.numerics.reductions import EmptyRows

_EMPTY_ROWS: dict[str, EmptyRows] = {"zeros": "zero", "uniform": "uniform", "leave": "nan"}


class DtypeSettings(NamedTuple):
    """What the config says about one dtype."""

    division_eps: float
    log_floor: float
    exp_min: float | None
    exp_max: float
    outside: Outside
    mask_value: float
    logvar_min: float
    logvar_max: float
    empty_rows: EmptyRows
    nonfinite_losses: str


def settings(dtype: torch.dtype) -> DtypeSettings:
    """The active config's values for `dtype`.

    Under `torch.compile` they are constants of the compiled function: a config that is activated later
    rules from the next compilation on.

    Raises:
        UsageError: the config has no values for `dtype`.
    """
    config = active()
    precision = config.precision[dtype]
    bound = config.exp.bound
    return DtypeSettings(
        division_eps=precision.division_eps,
        log_floor=precision.log_floor,
        exp_min=None if bound == "dtype" else -float(bound),
        exp_max=precision.exp_max if bound == "dtype" else min(precision.exp_max, float(bound)),
        outside=config.exp.gradient_outside,
        mask_value=precision.mask_value,
        logvar_min=precision.log_variance_min,
        logvar_max=precision.log_variance_max,
        empty_rows=_EMPTY_ROWS[config.softmax.empty_rows],
        nonfinite_losses=config.losses.nonfinite_elements,
    )


# What torch.compiler.assume_constant_result does, without its import of the whole compiler.
settings._dynamo_marked_constant = True  # type: ignore[attr-defined]


def settings_for(x: object, function: str) -> DtypeSettings:
    """`settings` for a tensor's dtype, refusing what is not a dense real tensor in the name of `function`."""
    tensor: Tensor = require_real(x, function)
    return settings(tensor.dtype)
