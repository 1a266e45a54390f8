"""Sums whose error does not grow with their length, without a loop over elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_drift.numerics.bounds import attach_gradient
from latent_drift.numerics.dtypes import accumulation_dtype, require_real
from latent_drift.numerics.reductions import _dims


def kahan_sum(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The sum of `x` over `dim` (all of it if None), compensated: as if summed in twice the precision and rounded once.

    Args:
        x: any shape, real floating.
        dim: dimension, dimensions, or None for all.
        keepdim: whether reduced dimensions stay, with size 1.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: |error| <= ulp(sum) + 2 log2(n)**2 eps**2 sum|x|: for sums that cancel by less than 1/eps this is one
    rounding; measured against math.fsum. Halves are added pairwise, and the rounding error of each addition, which
    is itself a floating-point number, is kept and added separately. Half types are summed in compensated
    float32. A sum that holds inf or NaN, or overflows, is that of torch. The gradient is 1.

    *Source*: Kahan 1965; TwoSum: Knuth, TAOCP 2, 4.2.2; the cascaded form: Ogita, Rump and Oishi 2005.

    >>> import torch
    >>> kahan_sum(torch.tensor([1e8, 0.25, 0.5, 0.25, -1e8]))
    tensor(1.)
    """
    require_real(x, "kahan_sum")
    rows, shape = _rows(x, dim, keepdim)
    plain = rows.sum(-1)
    if rows.shape[-1] < 2:
        return plain.reshape(shape).to(x.dtype)
    high, low = rows.detach(), torch.zeros_like(rows)
    while high.shape[-1] > 1:
        high, odd_high = _even(high)
        low, odd_low = _even(low)
        half = high.shape[-1] // 2
        a, b = high[..., :half], high[..., half:]
        total = a + b
        virtual = total - a
        error = (a - (total - virtual)) + (b - virtual)
        low = low[..., :half] + low[..., half:] + error
        high = torch.cat([total, odd_high], -1)
        low = torch.cat([low, odd_low], -1)
    value = high + low
    value = torch.where(value.isfinite(), value, plain.detach()[..., None])[..., 0]
    return attach_gradient(value, plain).reshape(shape).to(x.dtype)


def pairwise_sum(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The sum of `x` over `dim` (all of it if None) by halving: log2(n) additions deep instead of n.

    Args, shapes and errors as `kahan_sum`.

    *Numerics*: |error| <= ceil(log2(n)) eps/2 sum|x| + 1/2 ulp (Higham 1993, equation 3.6), on every device and for every stride;
    torch's own sum does something similar on a contiguous CPU row and promises nothing.

    *Source*: Higham, The accuracy of floating point summation, SIAM J. Sci. Comput. 14, 1993.

    >>> import torch
    >>> pairwise_sum(torch.full((1000,), 0.5), keepdim=True)
    tensor([500.])
    """
    require_real(x, "pairwise_sum")
    rows, shape = _rows(x, dim, keepdim)
    if rows.shape[-1] == 0:
        return rows.sum(-1).reshape(shape).to(x.dtype)
    while rows.shape[-1] > 1:
        rows, odd = _even(rows)
        half = rows.shape[-1] // 2
        rows = torch.cat([rows[..., :half] + rows[..., half:], odd], -1)
    return rows[..., 0].reshape(shape).to(x.dtype)


def _rows(x: Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> tuple[Tensor, list[int]]:
    """`x` in its accumulation dtype with the summed dimensions flattened into the last, and the shape of the result."""
    dims = tuple(range(x.dim())) if dim is None or x.dim() == 0 else _dims(dim, x)
    kept = [d for d in range(x.dim()) if d not in dims]
    shape = [1 if d in dims else x.shape[d] for d in range(x.dim())] if keepdim else [x.shape[d] for d in kept]
    length = 1
    for d in dims:
        length *= x.shape[d]
    rows = x.permute((*kept, *dims)).reshape([*(x.shape[d] for d in kept), length])
    return rows.to(accumulation_dtype(x.dtype)), shape


def _even(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` with an even number of columns, and the column left over (none or one)."""
    n = x.shape[-1] // 2 * 2
    return x[..., :n], x[..., n:]
