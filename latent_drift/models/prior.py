"""The prior over latent trajectories: a distribution of starting points and a vector field."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from latent_drift.config import StabilityConfig, load
from latent_drift.errors import UsageError
from latent_drift.numerics.bounds import clamp
from latent_drift.solvers.ode import ODE

# Depth from which the vector field adds its layers up instead of chaining them. Chained, gradient norms over 100 layers
# differ 62 times at the published sizes, added up 2.6 times (test_prior.py). The published depth, 5, is left as it is.
RESIDUAL_FROM_DEPTH: Final = 9


class DiagonalNormal(Independent):  # type: ignore[type-arg]  # generic to the type checker, not at run time
    """A Normal with independent components: the last axis is the event."""

    @property
    def loc(self) -> Tensor:
        """The means."""
        loc: Tensor = self.base_dist.loc
        return loc

    @property
    def scale(self) -> Tensor:
        """The standard deviations."""
        scale: Tensor = self.base_dist.scale
        return scale


class PriorInitDistribution(nn.Module):
    """The learned distribution of z_0: a diagonal Normal.

    Parameters:
        m, log_s: (1, latent_size), mean and log standard deviation; both start at 0.

    Args:
        config: the stability config that bounds log_s (`latent.log_std_min`, `latent.log_std_max`, and the range of
            exp in the parameter's dtype); None loads the default.
        legacy_compat: exp(log_s) without a bound, as published.

    *Numerics*: log_s is bounded in value, not in gradient: beyond a bound the gradient passes where it leads back, so
    a log_s that was pushed out returns. In float16 the scale stays below sqrt(65504).
    """

    def __init__(self, latent_size: int, *, config: StabilityConfig | None = None, legacy_compat: bool = False) -> None:
        super().__init__()
        if latent_size < 1:
            raise UsageError(f"PriorInitDistribution: latent_size must be at least 1; got {latent_size!r}")
        self.m = nn.Parameter(torch.zeros(1, latent_size))
        self.log_s = nn.Parameter(torch.zeros(1, latent_size))
        self.legacy_compat = legacy_compat
        latent = (config or load()).latent
        self._log_std = (latent.log_std_min, latent.log_std_max)
        self._half_log_std = (-7.0, 5.5)  # float16: exp(-7) = 9.1e-4 has a normal square root, exp(5.5) = 245 a finite square

    @property
    def log_scale_bounds(self) -> tuple[float, float]:
        """The smallest and largest log standard deviation in the parameter's dtype."""
        return self._half_log_std if self.log_s.dtype == torch.float16 else self._log_std

    def log_scale(self) -> Tensor:
        """log_s within its bounds, (1, latent_size)."""
        if self.legacy_compat:
            return self.log_s
        low, high = self.log_scale_bounds
        return clamp(self.log_s, low, high, outside="inward")

    def forward(self) -> Distribution:
        """The distribution: batch (1,), event (latent_size,)."""
        return DiagonalNormal(Normal(self.m, self.log_scale().exp(), validate_args=False), 1, validate_args=False)


class PriorODE(ODE):
    """The learned vector field of the latent: an MLP on (z, t).

    `drift_net` is depth x [Linear, LayerNorm, SiLU], then LayerNorm and Linear. Hidden Linear start xavier-uniform with
    gain 0.1 (the LayerNorm behind makes the forward independent of it), the last one orthogonal, biases at 0.

    Args:
        latent_size, hidden_size: widths.
        depth: hidden layers, at least 1. From `RESIDUAL_FROM_DEPTH` on, layers of equal width are residual:
            same parameters, h + layer(h) in place of layer(h).
        legacy_compat: chain the layers at any depth, as published.
    """

    def __init__(self, latent_size: int, hidden_size: int, depth: int = 5, *, legacy_compat: bool = False) -> None:
        super().__init__()
        for name, value in (("latent_size", latent_size), ("hidden_size", hidden_size), ("depth", depth)):
            if value < 1:
                raise UsageError(f"PriorODE: {name} must be at least 1; got {value!r}")
        layers: list[nn.Module] = []
        width = latent_size + 1
        for _ in range(depth):
            layers += [nn.Linear(width, hidden_size), nn.LayerNorm(hidden_size), nn.SiLU()]
            width = hidden_size
        self.drift_net = nn.Sequential(*layers, nn.LayerNorm(hidden_size), nn.Linear(hidden_size, latent_size))
        # Once all are built, in their order: so the published layers draw from the generator, by the reading that they were walked afterwards.
        *hidden, out = (m for m in self.drift_net if isinstance(m, nn.Linear))
        for linear in hidden:
            nn.init.xavier_uniform_(linear.weight, gain=0.1)
            nn.init.zeros_(linear.bias)
        nn.init.orthogonal_(out.weight)
        nn.init.zeros_(out.bias)
        self.latent_size = latent_size
        self.depth = depth
        self.residual = depth >= RESIDUAL_FROM_DEPTH and not legacy_compat

    def drift(self, z: Tensor, t: Tensor, *args: Any) -> Tensor:
        """dz/dt, the shape of `z`.

        Args:
            z: (..., D).
            t: (), a number, (1, 1), (B, 1), (B,), or anything that broadcasts to z's shape with 1 in place of D.

        Raises:
            UsageError: z is not (..., D), or t does not broadcast to it.
        """
        h = torch.cat([z, _broadcast_time(z, t, self.latent_size)], dim=-1)
        if not self.residual:
            dz: Tensor = self.drift_net(h)
            return dz
        modules = list(self.drift_net)
        for i in range(self.depth):
            linear, norm, activation = modules[3 * i : 3 * i + 3]
            layer = activation(norm(linear(h)))
            h = layer if i == 0 else h + layer
        dz = modules[-1](modules[-2](h))
        return dz


def _broadcast_time(z: Tensor, t: Tensor | float, latent_size: int) -> Tensor:
    if z.shape[-1] != latent_size:
        raise UsageError(f"PriorODE: z must be (..., {latent_size}); got {tuple(z.shape)}")
    time = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    if time.dim() == z.dim() - 1 and time.dim() > 0:
        time = time.unsqueeze(-1)
    try:
        return time.expand(*z.shape[:-1], 1)
    except RuntimeError as error:
        raise UsageError(f"PriorODE: t of shape {tuple(time.shape)} does not broadcast to one time for each state of z {tuple(z.shape)}") from error
