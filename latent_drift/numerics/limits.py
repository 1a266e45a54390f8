"""Per-dtype bounds, derived from `torch.finfo` and rounded so that they are safe as written.

The trap: `exp(log(finfo.max))` is inf in float16 and float32, because the logarithm of the largest
number, rounded to nearest, may round up. Every bound here is rounded toward the safe side *in the
dtype it is for*, and checked by evaluating the function at the bound and one ulp beyond.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor

from latent_drift.errors import UsageError

FLOAT_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The real floating dtypes that have limits here; other dtypes are refused by name."""


def _require_float(dtype: torch.dtype) -> torch.finfo:
    if dtype not in FLOAT_DTYPES:
        raise UsageError(f"limits are known for {', '.join(str(d) for d in FLOAT_DTYPES)}; got {dtype}")
    return torch.finfo(dtype)


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is not above `value` (a float64).

    Raises:
        UsageError: `dtype` is not a real floating dtype.
    """
    _require_float(dtype)
    rounded = torch.tensor(value, dtype=torch.float64).to(dtype)
    return (_previous(rounded) if rounded.double().item() > value else rounded).double().item()


_BITS: Final = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def _previous(x: Tensor) -> Tensor:
    """The next number of the same dtype toward -inf (torch.nextafter knows no float16); `x` is not 0."""
    bits = x.view(_BITS[x.dtype])
    return (bits - 1 if x.item() > 0 else bits + 1).view(x.dtype)


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of `dtype` that is not below `value` (a float64)."""
    return -round_down(-value, dtype)


@cache
def largest_exp_argument(dtype: torch.dtype) -> float:
    """The largest `x` of `dtype` with `exp(x)` finite in `dtype`.

    11.09 in float16, 88.72 in float32, 88.5 in bfloat16, 709.78 in float64.

    *Numerics*: log(max) is taken in float64 and rounded toward zero in `dtype`; torch evaluates the
    half types in float32 and rounds the result, so a result up to max + ulp/2 still rounds to max,
    which only widens the margin. Tested on both sides of the edge.
    """
    return round_down(math.log(_require_float(dtype).max), dtype)


@cache
def largest_exp2_argument(dtype: torch.dtype) -> float:
    """The largest `x` of `dtype` with `2**x` finite in `dtype` (just under 16, 128, 128, 1024)."""
    # log2(max) itself rounds up to 1024 in float64: one step down before rounding into the dtype.
    return round_down(math.nextafter(math.log2(_require_float(dtype).max), 0.0), dtype)


@cache
def largest_sinh_argument(dtype: torch.dtype) -> float:
    """The largest `x` of `dtype` with `sinh(x)` and `cosh(x)` finite: log(2 max), rounded toward zero."""
    return round_down(math.log(_require_float(dtype).max) + math.log(2.0), dtype)


@cache
def largest_square_root(dtype: torch.dtype) -> float:
    """The largest `x` of `dtype` with `x * x` finite: sqrt(max), rounded toward zero."""
    return round_down(math.sqrt(_require_float(dtype).max), dtype)


@cache
def smallest_reciprocal(dtype: torch.dtype) -> float:
    """The smallest positive *normal* `x` of `dtype` with `1 / x` finite.

    *Numerics*: in float16 the smallest normal, 6.1e-5, has the reciprocal 16384; subnormals below
    1.5e-5 overflow. Subnormals are never returned, since they are flushed to 0 on some devices.
    """
    info = _require_float(dtype)
    return max(info.smallest_normal, round_up(1.0 / info.max, dtype))


def lowest(dtype: torch.dtype) -> float:
    """The most negative finite number of `dtype`: what a mask may be filled with."""
    return _require_float(dtype).min
