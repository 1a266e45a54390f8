"""Is a sample standard normal? Univariate tests on characteristic functions, and random slices for many dimensions.

Everything here computes in float32 at least, outside autocast, whatever the dtype of its input: a mean over
thousands of samples in half precision is wrong in the second digit, and its product with N overflows.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_drift.errors import UsageError
from latent_drift.models.distributed import all_reduce, world_size
from latent_drift.models.trigonometric_sums import trigonometric_sums

REDUCTIONS: Final = ("mean", "sum", None)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 stays float64; every other real dtype is computed in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _require_samples(name: str, x: Tensor, dim: int) -> None:
    if x.dim() < dim or not x.is_floating_point():
        raise UsageError(f"{name}: expected a real floating tensor of at least {dim} dimensions; got {tuple(x.shape)} of {x.dtype}")


class UnivariateTest(nn.Module):
    """Base of the tests of one-dimensional samples.

    Args:
        eps: kept for subclasses that divide; nothing here uses it.
        sorted: whether samples arrive in ascending order along axis -2, so that `prepare_data` need not sort.
    """

    def __init__(self, eps: float = 1e-5, sorted: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.sorted = sorted

    def prepare_data(self, x: Tensor) -> Tensor:
        """`x` (*, N, K) in ascending order along N."""
        return x if self.sorted else x.sort(dim=-2).values

    def dist_mean(self, x: Tensor) -> Tensor:
        """The mean of `x` over all ranks, differentiable; `x` itself in a single process."""
        return all_reduce(x, op="AVG")

    @property
    def world_size(self) -> int:
        """Number of ranks that contribute samples."""
        return world_size()


class FastEppsPulley(UnivariateTest):
    """The Epps-Pulley statistic against N(0, 1), a weighted squared distance of characteristic functions.

        N * world * sum_j w_j [(mean_n cos(t_j x_n) - phi_j)^2 + (mean_n sin(t_j x_n))^2],   phi_j = exp(-t_j^2 / 2)

    on `n_points` equally spaced t_j in [0, t_max]; w_j are trapezoid weights, doubled inside for the mirrored
    half, times phi_j.

    Args:
        t_max: end of the grid, positive.
        n_points: points of the grid, at least 2.
        integration: "trapezoid".
        per_sample: leave out N * world. The statistic is then a distance whose weight in a loss depends neither on
            batch nor on length; with the factor it is the test statistic, whose distribution under N(0, 1) has a limit.

    Buffers:
        t, phi, weights: (n_points,), float32 unless the module is float64. A cast of the module to half precision
        leaves them in float32.

    *Numerics*: evaluated by angle addition on the grid (`trigonometric_sums`), exact to rounding: about 1e-6
    absolute a sample in float32, derivatives of every order included. Samples that are not finite are left out of
    their slice's mean and get gradient 0; a slice without any sample gives 0 (with a graph), so N = 0 is no NaN.
    The slope fades as exp(-s^2 / 6) with the distance s of the sample: `SlicingUnivariateTest` pulls from there.

    *Source*: Epps & Pulley, Biometrika 70 (1983) 723-726, the statistic as an integral over characteristic functions.
    """

    t: Tensor
    phi: Tensor
    weights: Tensor

    def __init__(self, t_max: float = 3.0, n_points: int = 17, integration: str = "trapezoid", *, per_sample: bool = False) -> None:
        super().__init__()
        if not (math.isfinite(t_max) and t_max > 0):
            raise UsageError(f"FastEppsPulley: t_max must be positive and finite; got {t_max!r}")
        if n_points < 2:
            raise UsageError(f"FastEppsPulley: n_points must be at least 2, the grid has two ends; got {n_points!r}")
        if integration != "trapezoid":
            raise UsageError(f"FastEppsPulley: integration must be 'trapezoid'; got {integration!r}")
        self.t_max = t_max
        self.n_points = n_points
        self.integration = integration
        self.per_sample = per_sample
        t = torch.linspace(0.0, t_max, n_points, dtype=torch.float32)
        phi = torch.exp(-0.5 * t.square())
        spacing = t_max / (n_points - 1)
        trapezoid = torch.full((n_points,), 2.0 * spacing, dtype=torch.float32)
        trapezoid[0] = trapezoid[-1] = spacing
        self.register_buffer("t", t)
        self.register_buffer("phi", phi)
        self.register_buffer("weights", trapezoid * phi)

    def _apply(self, fn: Any, recurse: bool = True) -> FastEppsPulley:
        before = {name: getattr(self, name) for name in ("t", "phi", "weights")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.t.dtype in (torch.float16, torch.bfloat16):
            # Rounding the grid to half precision would move the statistic by 1e-3: it stays what it was, loaded values included.
            for name, value in before.items():
                setattr(self, name, value.to(self.t.device, torch.float32))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(*, N, K), K samples of size N in each batch entry, to the statistics (*, K), float32 at least.

        Raises:
            UsageError: `x` is not a real floating tensor of at least 2 dimensions.
        """
        _require_samples("FastEppsPulley", x, 2)
        with torch.autocast(device_type=x.device.type, enabled=False):
            dtype = _accumulation_dtype(x)
            samples, slices = x.shape[-2:]
            rows = x.to(dtype).mT.reshape(math.prod(x.shape[:-2]) * slices, samples)
            phi, weights = self.phi.to(dtype), self.weights.to(dtype)
            cosines, sines, present = trigonometric_sums(rows, self.t[1], self.n_points - 1)
            if self.world_size > 1:
                totals = all_reduce(torch.cat([cosines, sines, present.unsqueeze(-1)], dim=-1), op="SUM")
                cosines, sines, present = totals[:, : self.n_points - 1], totals[:, self.n_points - 1 : -1], totals[:, -1].detach()
            size = present.clamp_min(1.0).unsqueeze(-1)
            # The term at t = 0 is (1 - phi_0)^2 = 0 for any sample.
            distance = (cosines / size - phi[1:]).square() + (sines / size).square()
            scale = (present > 0).to(dtype) if self.per_sample else present
            statistic: Tensor = (distance * weights[1:]).sum(-1) * scale
            return statistic.reshape((*x.shape[:-2], slices))


class EppsPulleyCF(UnivariateTest):
    """Integral over t of weight(t) |empirical cf - normal cf|^2 by the trapezoid rule, samples on the last axis.

    Args:
        t_range: ends of the grid, increasing.
        n_points: points of the grid, at least 2.
        weight_type: "gaussian" for exp(-t^2 / 2), "uniform" for 1.
    """

    def __init__(self, t_range: tuple[float, float] = (-3, 3), n_points: int = 10, weight_type: str = "gaussian") -> None:
        super().__init__()
        if not (len(t_range) == 2 and t_range[0] < t_range[1]):
            raise UsageError(f"EppsPulleyCF: t_range must be two increasing numbers; got {t_range!r}")
        if n_points < 2:
            raise UsageError(f"EppsPulleyCF: n_points must be at least 2; got {n_points!r}")
        if weight_type not in ("gaussian", "uniform"):
            raise UsageError(f"EppsPulleyCF: weight_type must be 'gaussian' or 'uniform'; got {weight_type!r}")
        self.t_range = t_range
        self.n_points = n_points
        self.weight_type = weight_type

    def empirical_cf(self, x: Tensor, t: Tensor) -> Tensor:
        """mean_n exp(i t x_n): samples (..., N) and grid (T,) to complex (..., T); 0 for an empty sample."""
        angles = x.unsqueeze(-2) * t.unsqueeze(-1)  # (..., T, N)
        size = max(1, x.shape[-1])
        return torch.complex(torch.cos(angles).sum(-1) / size, torch.sin(angles).sum(-1) / size)

    def normal_cf(self, t: Tensor, mu: float, sigma: float) -> Tensor:
        """exp(i mu t - sigma^2 t^2 / 2) on the grid (T,), complex."""
        return torch.polar(torch.exp(-0.5 * (sigma * t).square()), mu * t)

    def weight_function(self, t: Tensor) -> Tensor:
        """The weight at each point of the grid (T,)."""
        return torch.exp(-0.5 * t.square()) if self.weight_type == "gaussian" else torch.ones_like(t)

    def forward(self, x: Tensor) -> Tensor:
        """Samples (..., N) to statistics (...), float32 at least; 0 (with a graph) for an empty sample."""
        _require_samples("EppsPulleyCF", x, 1)
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = x.to(_accumulation_dtype(x))
            t = torch.linspace(self.t_range[0], self.t_range[1], self.n_points, dtype=x.dtype, device=x.device)
            empirical = torch.view_as_real(self.empirical_cf(x, t))
            difference = self.dist_mean(empirical) - torch.view_as_real(self.normal_cf(t, 0.0, 1.0))
            squared = difference.square().sum(-1) * self.weight_function(t)
            statistic: Tensor = torch.trapezoid(squared, t, dim=-1) * float(x.shape[-1] > 0)
            return statistic


def _generator(device: torch.device, seed: int) -> torch.Generator:
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    return generator


@torch.library.custom_op("latent_drift::gaussian_directions", mutates_args=())
def _gaussian_directions(like: Tensor, seed: Tensor, num_slices: int) -> Tensor:
    """Normal numbers (D, num_slices) in float32 from the seed; an operator, so that torch.compile sees no generator."""
    return torch.randn((like.shape[-1], num_slices), device=like.device, generator=_generator(like.device, int(seed.item())))


@_gaussian_directions.register_fake
def _(like: Tensor, seed: Tensor, num_slices: int) -> Tensor:
    return like.new_empty((like.shape[-1], num_slices), dtype=torch.float32)


class SlicingUnivariateTest(nn.Module):
    """A test of N(0, I) in D dimensions: a univariate test on projections onto random unit directions.

    The directions are seeded by the buffer `global_step` (the largest over all ranks, so that all ranks agree),
    which advances by one with each call in training mode and stands still in evaluation mode.

    Args:
        univariate_test: maps (*, N, K) to (*, K).
        num_slices: K, the number of directions, at least 1.
        reduction: "mean" or "sum" over all statistics, or None to return them (*, K).
        sampler: "gaussian", the only one.
        clip_value: statistics below it count as 0 (None: none do).
        legacy_compat: the published behaviour: no pull, and `global_step` advances in evaluation mode too.

    *Numerics*: far from the origin a characteristic function has no slope left (about s exp(-s^2 / 6) for a slice
    centred at s). Samples of norm r beyond R = max(4 sqrt(D), sqrt(D) + 4) therefore add (r - R) / sqrt(D) in the
    mean over samples: a pull of constant length toward the origin, as strong as the statistic's own at its best.
    R is where slices reach 4 standard deviations; a standard normal sample lies beyond it with probability below
    1e-6, so that the statistic is unchanged wherever it has a slope. A sample that is not finite
    takes part in nothing and gets gradient 0; an empty sample gives 0 (with a graph).
    """

    global_step: Tensor

    def __init__(
        self,
        univariate_test: nn.Module,
        num_slices: int,
        reduction: str | None = "mean",
        sampler: str = "gaussian",
        clip_value: float | None = None,
        *,
        legacy_compat: bool = False,
    ) -> None:
        super().__init__()
        if num_slices < 1:
            raise UsageError(f"SlicingUnivariateTest: num_slices must be at least 1; got {num_slices!r}")
        if reduction not in REDUCTIONS:
            raise UsageError(f"SlicingUnivariateTest: reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")
        if sampler != "gaussian":
            raise UsageError(f"SlicingUnivariateTest: sampler must be 'gaussian'; got {sampler!r}")
        self.univariate_test = univariate_test
        self.num_slices = num_slices
        self.reduction = reduction
        self.sampler = sampler
        self.clip_value = clip_value
        self.legacy_compat = legacy_compat
        self.register_buffer("global_step", torch.zeros((), dtype=torch.long))

    def _get_generator(self, device: torch.device | str, seed: int) -> torch.Generator:
        """The generator that directions are drawn from on `device`, at its start."""
        return _generator(torch.device(device), seed)

    def directions(self, like: Tensor) -> Tensor:
        """The unit directions of the current step, (D, num_slices), in float32 at least."""
        with torch.no_grad():
            seed = all_reduce(self.global_step, op="MAX")
            gaussian: Tensor = _gaussian_directions(like, seed, self.num_slices)
            return F.normalize(gaussian.to(_accumulation_dtype(like)), dim=0, eps=torch.finfo(torch.float32).tiny)

    def forward(self, x: Tensor) -> Tensor:
        """(*, N, D) to a scalar, or to (*, num_slices) for reduction None; float32 at least.

        Raises:
            UsageError: `x` is not a real floating tensor of at least 2 dimensions.
        """
        _require_samples("SlicingUnivariateTest", x, 2)
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = x.to(_accumulation_dtype(x))
            directions = self.directions(x.detach())
            if self.training or self.legacy_compat:
                self.global_step.add_(1)
            projected = (directions.mT @ x.mT).mT  # laid out slice by slice, as the kernel reads it
            statistics: Tensor = self.univariate_test(projected)
            if not self.legacy_compat:
                statistics = statistics + self._pull(x)
            if self.clip_value is not None:
                statistics = torch.where(statistics < self.clip_value, torch.zeros_like(statistics), statistics)
            if self.reduction == "mean":
                return statistics.mean()
            return statistics.sum() if self.reduction == "sum" else statistics

    def _pull(self, x: Tensor) -> Tensor:
        """The pull on far samples, (*, 1), in the scale of the univariate test."""
        samples, dim = x.shape[-2:]
        radius = max(4.0 * math.sqrt(dim), math.sqrt(dim) + 4.0)
        kept = torch.where(x.isfinite().all(-1, keepdim=True), x, torch.zeros_like(x))
        # The norm of entries up to the largest float: scaled by a constant first, so that squares do not overflow.
        peak = kept.detach().abs().amax(-1, keepdim=True).clamp_min(1.0) if dim else kept.new_ones((*x.shape[:-1], 1))
        norm = (kept / peak).norm(dim=-1) * peak.squeeze(-1)
        excess = F.relu(norm - radius) / math.sqrt(max(dim, 1))
        total = excess.sum(-1, keepdim=True)
        if getattr(self.univariate_test, "per_sample", False) or not isinstance(self.univariate_test, FastEppsPulley):
            return all_reduce(total / max(samples, 1), op="AVG")
        return all_reduce(total, op="SUM")


def latent_normality_test(num_slices: int, *, legacy_compat: bool = False) -> SlicingUnivariateTest:
    """The test both models hold as `latent_test`: slices of the Epps-Pulley statistic on 17 points to t = 3.

    The corrected one is a mean over samples, so that its weight in a loss is the same at any batch and length;
    under `legacy_compat` it is the published one, proportional to the number of samples.
    """
    test = FastEppsPulley(t_max=3.0, n_points=17, per_sample=not legacy_compat)
    return SlicingUnivariateTest(test, num_slices=num_slices, reduction="mean", legacy_compat=legacy_compat)
