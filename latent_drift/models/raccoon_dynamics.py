"""Drift and diffusion of the log classifier's latent SDE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.models.fused_path import HALF_PI, fused_path
from latent_drift.models.sizes import require_size
from latent_drift.numerics.limits import FLOAT_DTYPES, round_up
from latent_drift.solvers.sde import euler_maruyama_step

INITIAL_GAIN: Final = 0.1
"""Xavier gain of both networks: a vector field that starts near zero moves the latents little."""

INITIAL_SIGMA_SHARE: Final = 1e-4
"""Where sigma_min is below this share of sigma_max, the noise starts at the geometric mean of the share and the maximum, sigma_max / 100."""


class RaccoonDynamics(nn.Module):
    """dz = drift(z, t) dt + diffusion(z, t) dW, both from small networks of the latent and the time.

    Args:
        latent_dim: size of z.
        hidden_dim: width of the networks.
        sigma_min, sigma_max: bounds of the diffusion, 0 <= sigma_min <= sigma_max; equal ones give constant noise, zeros none.
        legacy_compat: as published: the log-diffusion is clamped, with no gradient outside, and starts at log 1 = 0, so that with
            sigma_max = 1 half of the entries sit above the bound.

    Raises:
        UsageError: a size that is not positive, or bounds that are negative, not finite or in the wrong order.

    *Numerics*: sigma_min <= diffusion holds as Python floats in every dtype (sigma_min is rounded up into the dtype and never
    taken through a logarithm). The log-diffusion is bounded with a slope that returns, and starts in the middle of its range.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_dim: int,
        sigma_min: float = 1e-4,
        sigma_max: float = 1.0,
        *,
        legacy_compat: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim = require_size(latent_dim, "latent_dim", "RaccoonDynamics")
        self.hidden_dim = require_size(hidden_dim, "hidden_dim", "RaccoonDynamics")
        if not 0.0 <= sigma_min <= sigma_max < math.inf:
            raise UsageError(f"RaccoonDynamics: expected 0 <= sigma_min <= sigma_max, both finite; got sigma_min={sigma_min}, sigma_max={sigma_max}")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.legacy_compat = legacy_compat
        self._ranges = {dtype: _log_range(self.sigma_min, self.sigma_max, dtype) for dtype in FLOAT_DTYPES}
        self.drift_net = nn.Sequential(
            nn.Linear(latent_dim + 1, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, latent_dim),
        )
        self.log_diffusion_net = nn.Sequential(nn.Linear(latent_dim + 1, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, latent_dim))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, gain=INITIAL_GAIN)
                nn.init.zeros_(module.bias)
        if not self.legacy_compat and self.sigma_max > 0.0:
            start = math.sqrt(max(self.sigma_min / self.sigma_max, INITIAL_SIGMA_SHARE)) * self.sigma_max
            last = self.log_diffusion_net[-1]
            assert isinstance(last, nn.Linear)
            nn.init.constant_(last.bias, math.log(start))

    def forward(self, z: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Drift and diffusion, both (B, latent_dim), of z (B, latent_dim) at t: (B, 1), or one time for all as a number, () or (1, 1)."""
        inputs = self._inputs(z, t)
        raw: Tensor = self.log_diffusion_net(inputs)
        return self.drift_net(inputs), self.bounded_diffusion(raw)

    def drift(self, z: Tensor, t: Tensor | float) -> Tensor:
        """The drift alone, (B, latent_dim)."""
        drift: Tensor = self.drift_net(self._inputs(z, t))
        return drift

    def diffusion(self, z: Tensor, t: Tensor | float) -> Tensor:
        """The diffusion alone, (B, latent_dim)."""
        raw: Tensor = self.log_diffusion_net(self._inputs(z, t))
        return self.bounded_diffusion(raw)

    def travel(self, z: Tensor, times: Sequence[float], noises: Sequence[Tensor]) -> Tensor:
        """z (B, latent_dim) at the last of `times`, by Euler-Maruyama with the given standard normal `noises`, (B, latent_dim) a step."""

        def by_step(z: Tensor) -> Tensor:
            for t0, t1, noise in zip(times, times[1:], noises, strict=False):
                drift, diffusion = self(z, z.new_full((z.shape[0], 1), t0))
                z = euler_maruyama_step(z, drift, diffusion, t1 - t0, math.sqrt(t1 - t0), noise)
            return z

        wide = self._ranges[z.dtype][1] >= LARGEST_EXPONENT[z.dtype]
        fused = None if wide else fused_path(self, RaccoonDynamics, z, times, noises, by_step)
        return by_step(z) if fused is None else fused

    def bounded_diffusion(self, raw: Tensor) -> Tensor:
        """exp of the raw log-diffusion, bounded to [sigma_min, sigma_max]; same shape and dtype.

        *Numerics*: sigma_min * exp(d) with d = s (atan(raw - m) / pi + 1/2) >= 0, s = log(sigma_max / sigma_min) and m the middle of the range.
        The slope decays like 1/raw**2 on either side: 90 beyond the range it is still 4e-4, where a clamp has 0.
        """
        if self.sigma_max == 0.0:
            return torch.zeros_like(raw)
        if self.legacy_compat and self.sigma_min > 0.0:
            return torch.exp(raw.clamp(math.log(self.sigma_min), math.log(self.sigma_max)))
        lowest, span = self._ranges[raw.dtype]
        if span == 0.0:
            return torch.full_like(raw, lowest)
        above_lowest = (torch.atan(raw - (math.log(lowest) + 0.5 * span)) + HALF_PI) * (span / math.pi)
        if span < LARGEST_EXPONENT[raw.dtype]:
            return lowest * torch.exp(above_lowest)
        root = torch.exp(0.5 * above_lowest)  # of a range wider than exp's own, as from 0 to 5 in float32
        return lowest * root * root

    def _inputs(self, z: Tensor, t: Tensor | float) -> Tensor:
        if not isinstance(t, Tensor) or t.shape != (z.shape[0], 1) or t.dtype != z.dtype:
            t = torch.as_tensor(t, dtype=z.dtype, device=z.device).reshape(-1, 1).expand(z.shape[0], 1)
        return torch.cat([z, t], dim=-1)


LARGEST_EXPONENT: Final = {dtype: 0.98 * math.log(torch.finfo(dtype).max) for dtype in FLOAT_DTYPES}
"""Exponents whose exp is finite with room for rounding: 86 in float32, 10.8 in float16."""


def _log_range(sigma_min: float, sigma_max: float, dtype: torch.dtype) -> tuple[float, float]:
    """The smallest diffusion in `dtype`, not below sigma_min, and log(largest / smallest), reduced by what rounding may add."""
    info = torch.finfo(dtype)
    # sigma_min = 0 has no logarithm: the smallest normal number of the dtype stands in for it, and is >= 0.
    lowest = max(round_up(sigma_min, dtype), info.smallest_normal)
    highest = min(sigma_max, info.max)  # a float16 module cannot hold sigma_max = 1e6
    span = math.log(highest) - math.log(lowest) if highest > lowest else 0.0  # their ratio may be beyond float64
    return lowest, max(span - (4.0 * span + 4.0) * info.eps, 0.0)
