"""Sinusoidal features of a time, exact in every dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError

HIGHEST_FREQUENCY: Final = 1000.0
"""In radians per unit of time; the lowest is 1."""


def require_time_dim(time_dim: int, owner: str) -> int:
    """`time_dim` itself if sines and cosines can share it evenly.

    Raises:
        UsageError: it is odd, below 2 or no integer.
    """
    if not isinstance(time_dim, int) or time_dim < 2 or time_dim % 2:
        raise UsageError(f"{owner}: time_dim must be an even integer of at least 2 (half sines, half cosines); got {time_dim!r}")
    return time_dim


def time_frequencies(time_dim: int) -> Tensor:
    """time_dim // 2 frequencies from 1 to 1000, evenly spaced in their logarithm: float32, (time_dim // 2,)."""
    exponents = torch.linspace(0.0, math.log(HIGHEST_FREQUENCY), time_dim // 2, dtype=torch.float64)
    return torch.exp(exponents).to(torch.float32)


def embed_time(t: Tensor, freqs: Tensor) -> Tensor:
    """sin(t f) and then cos(t f): t (..., 1) -> (..., 2 * len(freqs)), in t's dtype, or that of `freqs` where t is no float.

    *Numerics*: the angle, up to 1000 radians, is formed in the dtype of `freqs`, float32 or wider: in float16 one unit in the last
    place there is half a radian, in bfloat16 four.
    """
    angle = t.to(torch.promote_types(t.dtype, freqs.dtype)) * freqs
    features = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return features.to(t.dtype) if t.is_floating_point() else features


class TimeAwareTransform(nn.Module):
    """Features of a time.

    Attributes:
        freqs: buffer (time_dim // 2,), float32 or float64: `.half()` and `.bfloat16()` leave it alone.

    Raises:
        UsageError: `time_dim` is odd or not positive.
    """

    freqs: Tensor

    def __init__(self, time_dim: int = 32) -> None:
        super().__init__()
        self.time_dim = require_time_dim(time_dim, "TimeAwareTransform")
        self.register_buffer("freqs", time_frequencies(time_dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self.freqs
        module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.freqs.dtype in (torch.float16, torch.bfloat16):
            # Rounded to half precision a frequency of 900 is off by up to 2: the features at t = 1 would be another time's.
            self.freqs = before.to(self.freqs.device)
        return module

    def embed_time(self, t: Tensor) -> Tensor:
        """t (B, 1) or (B,), any real dtype -> (B, time_dim), sines first."""
        return embed_time(t.unsqueeze(-1) if t.dim() == 1 else t, self.freqs)

    def forward(self, t: Tensor) -> Tensor:
        """As `embed_time`."""
        return self.embed_time(t)
