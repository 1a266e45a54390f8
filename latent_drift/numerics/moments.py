"""Mean and variance that survive a large mean, in one call or over a stream.

The trap: `E[x**2] - E[x]**2` at a mean of 1e8 and a variance of 1 has no correct digit, in float64 either;
Welford's update in a Python loop over elements is right and a thousand times too slow. Here batches are reduced by
torch in two passes and merged by Chan's formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.numerics.dtypes import accumulation_dtype, require_real
from latent_drift.numerics.reductions import _dims


class Moments(NamedTuple):
    """Mean and variance, each of the reduced shape."""

    mean: Tensor
    variance: Tensor


def welford(
    x: Tensor, dim: int | Sequence[int] | None = None, *, correction: int = 1, keepdim: bool = False, weights: Tensor | None = None
) -> Moments:
    """Mean and variance of `x` over `dim` (all of it if None), accurate whatever the mean.

    Args:
        x: any shape, real floating.
        dim: dimension, dimensions, or None.
        correction: n - correction divides the squared deviations, 1 as in `torch.var`.
        keepdim: whether reduced dimensions stay, with size 1.
        weights: optional non-negative weights that broadcast to `x`; n is then their sum (frequency weights).

    Returns:
        `(mean, variance)`, in the dtype of `x`. Fewer elements than `correction` + 1 give a NaN variance, as torch does.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: the corrected two-pass algorithm: relative error of the variance about n eps**2 kappa**2 + a few eps,
    kappa = sqrt(1 + mean**2/variance), against n eps kappa**2 of the textbook formula. Differentiable.

    *Source*: Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983, equation 1.7.

    >>> import torch
    >>> mean, variance = welford(torch.tensor([1e8, 1e8 + 8, 1e8 + 16]))
    >>> mean.item(), variance.item()
    (100000008.0, 64.0)
    """
    require_real(x, "welford")
    dims = tuple(range(x.dim())) if dim is None or x.dim() == 0 else _dims(dim, x)
    wide = x.to(accumulation_dtype(x.dtype))
    scale = _headroom(wide, dims)
    count, mean, squares = _two_pass(wide * scale, dims, weights)
    variance = torch.where(count > correction, squares / (count - correction).clamp(min=torch.finfo(wide.dtype).tiny), torch.nan)
    mean, variance = mean / scale, variance / scale / scale
    if not keepdim and dims:
        mean, variance = mean.squeeze(dims), variance.squeeze(dims)
    return Moments(mean.to(x.dtype), variance.to(x.dtype))


# Numbers below it have sums, and sums of squares, of 2**40 of them within float32: they are left alone, bit for bit.
_SAFE = 2.0**40


def _headroom(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A power of two, 1 for ordinary numbers, by which `x` is multiplied so that no sum of the two passes overflows unless its result does.

    1 / (2 n) is enough: sums of n differences are then below the largest number, and so are sums of squares whose mean is. It is no
    smaller than that, so that gradients, which pass it both ways, do not overflow either.
    """
    if x.numel() == 0:
        return x.new_ones(())
    n = 1
    for d in dims:
        n *= x.shape[d]
    largest = x.detach().abs().amax(dims, keepdim=True) if dims else x.detach().abs()
    return torch.where((largest > _SAFE) & largest.isfinite(), 2.0 ** -math.ceil(math.log2(2 * n)), 1.0).to(x.dtype)


def _two_pass(x: Tensor, dims: tuple[int, ...], weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, sum of squared deviations), reduced dimensions kept."""
    if weights is None:
        n = 1
        for d in dims:
            n *= x.shape[d]
        count = torch.as_tensor(float(n), dtype=x.dtype, device=x.device)
        # A value of the data is taken out first: what is left of a large common mean is added without rounding.
        shift = x.detach().select(dims[0], 0).unsqueeze(dims[0]) if dims and n else torch.zeros((), dtype=x.dtype, device=x.device)
        for d in dims[1:] if n else ():
            shift = shift.select(d, 0).unsqueeze(d)
        mean = shift + (x - shift).sum(dims, keepdim=True) / count if dims else x / count
        residual = x - mean
        slip = residual.sum(dims, keepdim=True) if dims else residual
        squares = (residual * residual).sum(dims, keepdim=True) if dims else residual * residual
        safe = count.clamp(min=1)
        return count, mean + slip / safe, _corrected(squares, slip, safe)
    w = weights.to(x.dtype).expand_as(x)
    count = w.sum(dims, keepdim=True) if dims else w
    safe = torch.where(count > 0, count, torch.ones_like(count))
    mean = (w * x).sum(dims, keepdim=True) / safe if dims else x
    residual = x - mean
    slip = (w * residual).sum(dims, keepdim=True) if dims else w * residual
    squares = (w * residual * residual).sum(dims, keepdim=True) if dims else w * residual * residual
    mean = torch.where(count > 0, mean + slip / safe, torch.full_like(mean, torch.nan))
    return count, mean, _corrected(squares, slip, safe)


def _corrected(squares: Tensor, slip: Tensor, count: Tensor) -> Tensor:
    """Squared deviations less what the rounded mean added to them; a sum that is beyond the dtype stays inf."""
    return torch.where(squares.isinf(), squares, squares - slip * slip / count).clamp(min=0)


class RunningMoments:
    """Mean and variance of a stream of batches, without keeping it; can be merged, weighted, saved, and reduced over processes.

    Args:
        dim: the dimensions of a batch that are samples (0: the batch axis); None: all, for scalar statistics.

    Statistics are kept in float64 where the device has it, else in float32; they carry no gradient.

    *Numerics*: each batch enters by Chan's merge, whose error does not grow with the mean: for a mean of 1e8 and a variance
    of 1 the variance is right to 1e-9 after 1e6 samples. A batch with a NaN gives NaN: it is not hidden; filter first.

    *Source*: Chan, Golub and LeVeque 1983, equation 2.1; weights: West 1979.

    >>> import torch
    >>> moments = RunningMoments(dim=None).update(torch.tensor([1.0, 2.0])).update(torch.tensor([6.0]))
    >>> moments.count.item(), moments.mean.item(), moments.variance.item()
    (3.0, 3.0, 7.0)
    """

    def __init__(self, dim: int | Sequence[int] | None = 0) -> None:
        self.dim = dim
        self._count: Tensor | None = None
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, weights: Tensor | None = None) -> RunningMoments:
        """Take in a batch; weights broadcast to it. Returns itself.

        Raises:
            UsageError: `x` is complex, integer or not strided, or its statistics have another shape than before.
        """
        require_real(x, "RunningMoments.update")
        dims = tuple(range(x.dim())) if self.dim is None or x.dim() == 0 else _dims(self.dim, x)
        wide = x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)
        scale = _headroom(wide, dims)
        count, mean, squares = _two_pass(wide * scale, dims, weights)
        mean, squares = mean / scale, squares / scale / scale
        if dims:
            mean, squares = mean.squeeze(dims), squares.squeeze(dims)
            count = count.squeeze(dims) if count.dim() else count
        if bool((count == 0).all()):
            return self
        self._merge(count.expand_as(mean).clone(), mean, squares)
        return self

    def merge(self, other: RunningMoments) -> RunningMoments:
        """Take in all that `other` has seen. Returns itself."""
        if other._count is not None and other._mean is not None and other._squares is not None:
            self._merge(other._count, other._mean, other._squares)
        return self

    def _merge(self, count: Tensor, mean: Tensor, squares: Tensor) -> None:
        if self._count is None or self._mean is None or self._squares is None:
            self._count, self._mean, self._squares = count.clone(), mean.clone(), squares.clone()
            return
        if mean.shape != self._mean.shape:
            raise UsageError(f"RunningMoments: statistics so far have shape {tuple(self._mean.shape)}, the new ones {tuple(mean.shape)}")
        total = self._count + count
        share = torch.where(total > 0, count / total.clamp(min=torch.finfo(total.dtype).tiny), torch.zeros_like(total))
        delta = torch.where(count > 0, mean.to(self._mean) - self._mean, torch.zeros_like(self._mean))
        delta = torch.where(self._count > 0, delta, mean)  # nothing there yet: the mean is the new one
        start = torch.where(self._count > 0, self._mean, torch.zeros_like(self._mean))
        self._squares = self._squares + squares + torch.where(self._count > 0, delta * delta * self._count * share, torch.zeros_like(delta))
        self._mean = start + delta * share
        self._count = total

    @property
    def count(self) -> Tensor:
        """How much was taken in, per statistic: the number of samples, or the sum of their weights."""
        return torch.zeros((), dtype=torch.float64) if self._count is None else self._count

    @property
    def mean(self) -> Tensor:
        """The mean; NaN while nothing was taken in."""
        return torch.full((), torch.nan, dtype=torch.float64) if self._mean is None else self._mean

    @property
    def variance(self) -> Tensor:
        """The unbiased variance (n - 1), NaN below two samples."""
        return self.var(correction=1)

    @property
    def std(self) -> Tensor:
        """The square root of `variance`."""
        return self.variance.sqrt()

    def var(self, correction: int = 1) -> Tensor:
        """The variance with n - correction."""
        if self._count is None or self._squares is None:
            return torch.full((), torch.nan, dtype=torch.float64)
        room = self._count - correction
        return torch.where(room > 0, self._squares / room.clamp(min=torch.finfo(room.dtype).tiny), torch.full_like(room, torch.nan))

    def all_reduce(self, group: Any = None) -> RunningMoments:
        """Merge what all processes have seen; every process must call it and ends with bitwise the same statistics. Returns itself.

        One gather of three numbers per statistic; a process that has seen nothing takes part. Does nothing without an
        initialised process group.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        gathered: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(gathered, self.state_dict(), group=group)
        merged = RunningMoments(self.dim)
        for state in gathered:  # in rank order on every process: the same rounding everywhere
            merged.merge(RunningMoments.from_state_dict(state))
        device = self._mean.device if self._mean is not None else None
        self.load_state_dict(merged.state_dict())
        if device is not None and self._count is not None and self._mean is not None and self._squares is not None:
            self._count, self._mean, self._squares = self._count.to(device), self._mean.to(device), self._squares.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The statistics as CPU tensors, for a checkpoint."""
        values = (self._count, self._mean, self._squares)
        return {"dim": self.dim, **dict(zip(("count", "mean", "squares"), (None if v is None else v.cpu().clone() for v in values), strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the statistics by saved ones."""
        self.dim = state["dim"]
        self._count, self._mean, self._squares = (None if state[k] is None else state[k].clone() for k in ("count", "mean", "squares"))

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RunningMoments:
        """Statistics from what `state_dict` gave."""
        made = cls(state["dim"])
        made.load_state_dict(state)
        return made
