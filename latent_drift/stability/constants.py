"""The numbers of the active config under the names that the audit gave them."""

from __future__ import annotations

from typing import Any

import torch

from latent_drift.config.active import active
from latent_drift.stability.settings import DtypeSettings, settings


def get_eps(dtype: torch.dtype) -> float:
    """The smallest magnitude a divisor of `dtype` may have: normal, with a finite reciprocal; from the active config.

    Raises:
        UsageError: `dtype` is not float16, bfloat16, float32 or float64.

    *Numerics*: 1e-6, often taken for float16, is subnormal there and its reciprocal is inf; bfloat16 has float32's range.

    >>> import torch
    >>> get_eps(torch.float16)
    6.103515625e-05
    >>> (1 / torch.tensor(get_eps(torch.float16), dtype=torch.float16)).item()
    16384.0
    """
    return settings(dtype).division_eps


class _Constants(type):
    """Resolves the published names in the active config, at each access."""

    def __getattr__(cls, name: str) -> float:
        config = active()
        if name not in _NAMES:
            raise AttributeError(f"StabilityConstants has no {name!r}; it has {', '.join(_NAMES)}")
        report, utilities = _PUBLISHED_TWICE.get((config.version, name), (None, None))
        value: Any = config
        for key in _NAMES[name].split("."):
            value = getattr(value, key)
        return float(utilities if utilities is not None and value == report else value)

    def __dir__(cls) -> list[str]:
        return [*super().__dir__(), *_NAMES]


_NAMES = {
    "EPS_FLOAT32": "precision.float32.division_eps",
    "EPS_FLOAT16": "precision.float16.division_eps",
    "EPS_DIVISION": "precision.float32.division_eps",
    "EPS_LOG": "precision.float32.log_floor",
    "LOG_MIN": "precision.float32.exp_min",
    "LOG_MAX": "precision.float32.exp_max",
    "LOGVAR_MIN": "precision.float32.log_variance_min",
    "LOGVAR_MAX": "precision.float32.log_variance_max",
    "SCALE_MIN": "latent.scale_min",
    "SCALE_MAX": "latent.scale_max",
    "GRAD_CLIP_NORM": "gradient.default_max_norm",
    "GRAD_CLIP_VALUE": "gradient.default_max_value",
    "ATTENTION_MASK_VALUE": "precision.float32.mask_value",
}


# The audit's report and its utilities differ in two numbers. Config 0.9.0 has the report's; the constants are the utilities'.
_PUBLISHED_TWICE = {("0.9.0", "EPS_FLOAT16"): (1e-6, 1e-4), ("0.9.0", "EPS_DIVISION"): (1e-8, 1e-6)}


class StabilityConstants(metaclass=_Constants):
    """The audit's constants, read from the active config at each access; float32's where a name does not say otherwise.

    `LOG_MIN` and `LOG_MAX` bound the argument of exp. Values differ by dtype: use `for_dtype`. Under config 0.9.0 every constant has its
    published value.

    >>> import torch
    >>> StabilityConstants.GRAD_CLIP_NORM
    1.0
    >>> StabilityConstants.for_dtype(torch.float16).mask_value  # -1e9 does not fit float16
    -65504.0
    """

    def __getattr__(self, name: str) -> float:  # an instance has them too, as it had when they were plain class attributes
        return getattr(type(self), name)  # type: ignore[no-any-return]

    @staticmethod
    def get_eps(dtype: torch.dtype) -> float:
        """`get_eps(dtype)`."""
        return get_eps(dtype)

    @staticmethod
    def for_dtype(dtype: torch.dtype) -> DtypeSettings:
        """Every bound of one dtype."""
        return settings(dtype)
