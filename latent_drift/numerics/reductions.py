"""logsumexp, the softmax family and norms, with an answer for every row.

torch's softmax already subtracts the maximum. What it lacks, and what these add, is a defined value and
a zero gradient for a row without a finite maximum: all entries -inf (a fully masked row), or +inf among
them. NaN is never hidden: a row with a NaN stays NaN. Shapes, `dim` and `keepdim` are torch's; the dtype is
kept; sums are formed in float32 for the half types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.numerics.bounds import is_within
from latent_drift.numerics.dtypes import accumulation_dtype, require_real

EmptyRows = Literal["zero", "uniform", "nan"]
"""What softmax gives for a row of nothing but -inf."""


def logsumexp(x: Tensor, dim: int | Sequence[int] = -1, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over `dim`.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: absolute error within 2 ulp of max(|largest entry|, |result|), gradient within a few ulp at any size of the entries (torch's
    own is off by half an ulp of the result, 6e-5 for entries of 1,000 in float32). A row of -inf, and an empty dimension,
    give -inf; a row with +inf gives +inf; both with gradient 0, where torch's gradient is NaN and the textbook
    `m + log(sum(exp(x - m)))` is NaN already in value.
    """
    require_real(x, "log_sum_exp")
    if x.dim() == 0:
        return x.clone()
    dims = _dims(dim, x)
    wide = x.to(accumulation_dtype(x.dtype))
    if 0 in [x.shape[d] for d in dims]:
        return torch.logsumexp(wide, dims, keepdim=keepdim).to(x.dtype)
    largest = wide.detach().amax(dims, keepdim=True)
    info = torch.finfo(wide.dtype)
    if is_within(largest, info.min, info.max):
        # torch's derivative is exp(x - result): with the maximum taken out first, the result is small there and its rounding with it
        result = torch.logsumexp(wide - largest, dims, keepdim=True) + largest
    else:
        degenerate = largest.isinf()
        # Degenerate rows are computed on zeros and then replaced: neither branch ever holds inf - inf, in any derivative.
        shift = torch.where(degenerate, torch.zeros_like(largest), largest)
        result = torch.logsumexp(torch.where(degenerate, torch.zeros_like(wide), wide - shift), dims, keepdim=True) + shift
        result = torch.where(degenerate, largest, result)
    return (result if keepdim else _squeeze(result, dims)).to(x.dtype)


def softmax(x: Tensor, dim: int = -1, empty_rows: EmptyRows = "zero", where: Tensor | None = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`: torch's own softmax wherever that is defined.

    Args:
        x: any shape; -inf marks what is left out.
        dim: the dimension that sums to one.
        empty_rows: a row with nothing but -inf gives zeros, the uniform distribution, or NaN.
        where: optional boolean mask, broadcast to `x`: entries that are False count as -inf.

    Raises:
        UsageError: `x` is complex, integer or not strided, or `empty_rows` is unknown.

    *Numerics*: at most 4 + (max - x) ulp for normal results (x - max is rounded before exp, in torch too). +inf entries
    share the whole weight (the limit); their row and empty rows have gradient 0. No epsilon: one added after the sum
    would change every probability.
    """
    require_real(x, "softmax")
    if empty_rows not in get_args(EmptyRows):
        raise UsageError(f"softmax: empty_rows must be one of {', '.join(get_args(EmptyRows))}; got {empty_rows!r}")
    x = _masked(x, where)
    if x.numel() == 0:
        return torch.softmax(x, dim)
    if _all_rows_regular(x, dim):
        return torch.softmax(x, dim)
    regular, empty = _regular_rows(x, dim)
    result = torch.softmax(regular, dim)
    if empty_rows == "uniform":
        return result  # empty rows were computed on zeros
    fill = 0.0 if empty_rows == "zero" else math.nan
    return torch.where(empty, torch.full_like(result, fill), result)


def log_softmax(x: Tensor, dim: int = -1, where: Tensor | None = None) -> Tensor:
    """log(softmax(x)) along `dim`: torch's own wherever that is defined, -inf throughout an empty row.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: absolute error within 2 ulp of the row's largest magnitude. A row of -inf gives -inf (so that its exp is softmax's
    zeros); k entries of +inf get -log(k), the others -inf; such rows have gradient 0.
    """
    require_real(x, "log_softmax")
    x = _masked(x, where)
    if x.numel() == 0:
        return torch.log_softmax(x, dim)
    if _all_rows_regular(x, dim):
        return torch.log_softmax(x, dim)
    regular, empty = _regular_rows(x, dim)
    result = torch.log_softmax(regular, dim)
    return torch.where(empty, torch.full_like(result, -math.inf), result)


def norm(x: Tensor, p: float = 2.0, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The p-norm of `x` over `dim` (all of it if None), without overflow or underflow on the way; gradient 0 at the zero vector.

    Raises:
        UsageError: `x` is complex, integer or not strided, or p is NaN.

    *Numerics*: the vector is scaled by a power of two near its largest entry, exactly, so squares neither overflow
    (float16 does so from 256) nor vanish. Error about (2 + log2 n) ulp. An infinite entry gives inf with gradient 0.
    """
    require_real(x, "norm")
    if math.isnan(p):
        raise UsageError("norm: p must be a number, inf or -inf; got nan")
    dims = tuple(range(x.dim())) if dim is None else _dims(dim, x) if x.dim() else ()
    if x.numel() == 0 or p == 0:
        plain: Tensor = torch.linalg.vector_norm(x, ord=p, dim=dims or None, keepdim=keepdim)
        return plain
    wide = x.to(accumulation_dtype(x.dtype))
    regular, scale, degenerate, largest = _scaled(wide, dims)
    result = torch.linalg.vector_norm(regular, ord=p, dim=dims, keepdim=True) * scale
    if p < 0:
        largest = torch.where(largest.isinf(), torch.linalg.vector_norm(wide.detach(), ord=p, dim=dims, keepdim=True), largest)
    result = torch.where(degenerate, largest, result)
    return (result if keepdim else _squeeze(result, dims)).to(x.dtype)


def normalize(x: Tensor, dim: int | Sequence[int] = -1, floor: float | None = None) -> Tensor:
    """x / max(||x||, floor) along `dim`: unit vectors, and 0 for the zero vector.

    Args:
        x: any shape.
        dim: the dimension (or dimensions) of the vectors.
        floor: shorter vectors are divided by the floor; by default only the dtype's smallest normal number, so that
            every representable vector of normal length becomes a unit vector.

    Raises:
        UsageError: `x` is complex, integer or not strided, or floor is not positive and finite.

    *Numerics*: a few ulp, at any scale; the gradient is finite for every finite vector up to 1/floor. A vector with an
    infinite entry has no direction: NaN.
    """
    require_real(x, "normalize")
    tiny = torch.finfo(x.dtype).smallest_normal
    floor = tiny if floor is None else floor
    if not (0 < floor < math.inf):
        raise UsageError(f"normalize: floor must be positive and finite; got {floor}")
    if x.numel() == 0:
        return x.clone()
    dims = _dims(dim, x) if x.dim() else ()
    wide = x.to(accumulation_dtype(x.dtype))
    regular, scale, degenerate, largest = _scaled(wide, dims)
    length = torch.linalg.vector_norm(regular, dim=dims, keepdim=True)
    least = max(floor, tiny)
    # lengths are relative to `scale`: the floor is brought there too; a power of two, so nothing is rounded
    length = torch.where(length * scale < least, least / scale, length)
    unit = regular / length
    outside = torch.where(largest.isinf(), torch.full_like(wide, math.nan), wide / least)  # the line through the origin
    return torch.where(degenerate, outside, unit).to(x.dtype)


def _scaled(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x / scale with degenerate vectors replaced by ones, scale, which vectors are degenerate, largest magnitude)."""
    largest = x.detach().abs().amax(dims, keepdim=True) if dims else x.detach().abs()
    degenerate = (largest == 0) | largest.isinf()
    exponent = torch.floor(torch.log2(torch.where(degenerate | largest.isnan(), torch.ones_like(largest), largest)))
    info = torch.finfo(x.dtype)
    # Both the scale and its reciprocal must be normal numbers.
    bound = math.floor(math.log2(info.max)) - 2
    scale = torch.exp2(exponent.clamp(-bound, bound))
    regular = torch.where(degenerate, torch.ones_like(x), x) / scale
    return regular, scale, degenerate, largest


def _all_rows_regular(x: Tensor, dim: int) -> bool:
    """Whether every row is known to have a finite maximum: then torch has the answer."""
    info = torch.finfo(x.dtype)
    return is_within(x.detach().amax(dim) if x.dim() else x, info.min, info.max)


def _regular_rows(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`x` with degenerate rows replaced by finite stand-ins of the right limit, and the mask of rows that are all -inf."""
    if x.dim() == 0:
        largest = x.detach()
    else:
        largest = x.detach().amax(dim, keepdim=True)
    empty = largest == -math.inf
    unbounded = largest == math.inf
    # 0 for the entries that share the weight, -inf for the rest: constants, so no gradient flows.
    stand_in = torch.where(empty | (x.detach() == math.inf), torch.zeros_like(x), torch.full_like(x, -math.inf))
    return torch.where(empty | unbounded, stand_in, x), empty


def _masked(x: Tensor, where: Tensor | None) -> Tensor:
    if where is None:
        return x
    if where.dtype != torch.bool:
        raise UsageError(f"softmax: where must be a boolean mask (True takes part), got {where.dtype}; an additive mask is simply added to x")
    return torch.where(where, x, torch.full_like(x, -math.inf))


def _dims(dim: int | Sequence[int], x: Tensor) -> tuple[int, ...]:
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if not dims:
        dims = tuple(range(x.dim()))
    for d in dims:
        if not -x.dim() <= d < x.dim():
            raise IndexError(f"dim {d} is out of range for a tensor of shape {tuple(x.shape)}")
    return tuple(sorted({d % x.dim() for d in dims}))


def _squeeze(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.squeeze(dims) if dims else x
