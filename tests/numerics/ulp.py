"""Errors in units of the last place, against float64 or mpmath, over the whole range of a dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import torch
from torch import Tensor

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
_SMALLEST_EXPONENT = {torch.float16: -14, torch.bfloat16: -126, torch.float32: -126, torch.float64: -1022}


def spacing(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of `dtype` at `reference` (float64)."""
    exponent = torch.frexp(reference.abs()).exponent - 1
    exponent = exponent.clamp(min=_SMALLEST_EXPONENT[dtype])
    return torch.ldexp(torch.full_like(reference, torch.finfo(dtype).eps), exponent)


def ulps(actual: Tensor, reference: Tensor) -> Tensor:
    """|actual - reference| in ulp of the reference, elementwise; equal infinities count as 0, a NaN as inf."""
    exact = actual.double() == reference
    error = (actual.double() - reference).abs() / spacing(reference, actual.dtype)
    return torch.where(exact, torch.zeros_like(error), error.nan_to_num(nan=math.inf))


def every_number(dtype: torch.dtype, count: int = 200_000, seed: int = 0) -> Tensor:
    """All finite numbers of a half type; `count` random finite bit patterns of a wider one, edges included."""
    if dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        info = torch.iinfo(BITS[dtype])
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(info.min, info.max, (count,), dtype=torch.int64, generator=generator).to(BITS[dtype]).view(dtype)
        f = torch.finfo(dtype)
        edges = torch.tensor([0.0, -0.0, 1.0, -1.0, f.max, f.min, f.tiny, -f.tiny, f.eps, 1 - f.eps], dtype=dtype)
        x = torch.cat([x, edges])
    return x[x.isfinite()]


def reference(function: Callable[[mpmath.mpf], mpmath.mpf], x: Tensor, digits: int = 60) -> Tensor:
    """`function` evaluated with that many decimal digits on each number, rounded to float64."""
    with mpmath.workdps(digits):
        return torch.tensor([float(function(mpmath.mpf(v))) for v in x.double().tolist()], dtype=torch.float64)
