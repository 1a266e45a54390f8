"""Per-dtype bounds, derived from `torch.finfo` and rounded so that they are safe as written.

The trap: `exp(log(finfo.max))` is inf in float16 and float32, because the logarithm of the largest
number, rounded to nearest, may round up. Every bound here is rounded toward the safe side *in the
dtype it is for*, and checked by evaluating the function at the bound and one ulp beyond.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from latent_drift.errors import UsageError

FLOAT_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The real floating dtypes that have limits here; other dtypes are refused by name."""


def _require_float(dtype: torch.dtype) -> torch.finfo:
    if dtype not in FLOAT_DTYPES:
        raise UsageError(f"limits are known for {', '.join(str(d) for d in FLOAT_DTYPES)}; got {dtype}")
    return torch.finfo(dtype)


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is not above `value` (a float64); -inf below the range.

    Raises:
        UsageError: `dtype` is not a real floating dtype.

    *Numerics*: exact, by the spacing of the dtype's numbers around `value`; no tensor is made, so the answer is the same under fake
    tensors, another default device and `torch.compile`.
    """
    info = _require_float(dtype)
    if not info.min <= value < info.max:
        return info.max if info.max <= value < math.inf else -math.inf if value < info.min else value
    binade = math.frexp(value)[1] - 1
    spacing = max(math.ldexp(info.eps, binade), info.smallest_normal * info.eps)
    return math.floor(value / spacing) * spacing


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of `dtype` that is not below `value` (a float64)."""
    return -round_down(-value, dtype)


def _reciprocal_edge(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return max(info.smallest_normal, round_up(1.0 / info.max, dtype))


# Dictionaries, not cached functions: Dynamo warns of a cache inside compiled code and traces through it, while a dictionary of numbers is
# a constant to it.
_LARGEST_EXP_ARGUMENT: Final = {d: round_down(math.log(torch.finfo(d).max), d) for d in FLOAT_DTYPES}
# log2(max) itself rounds up to 1024 in float64: one step down before rounding into the dtype.
_LARGEST_EXP2_ARGUMENT: Final = {d: round_down(math.nextafter(math.log2(torch.finfo(d).max), 0.0), d) for d in FLOAT_DTYPES}
_LARGEST_SINH_ARGUMENT: Final = {d: round_down(math.log(torch.finfo(d).max) + math.log(2.0), d) for d in FLOAT_DTYPES}
_LARGEST_SQUARE_ROOT: Final = {d: round_down(math.sqrt(torch.finfo(d).max), d) for d in FLOAT_DTYPES}
_SMALLEST_RECIPROCAL: Final = {d: _reciprocal_edge(d) for d in FLOAT_DTYPES}


def _of(table: dict[torch.dtype, float], dtype: torch.dtype) -> float:
    if dtype not in table:
        _require_float(dtype)
    return table[dtype]


def largest_exp_argument(dtype: torch.dtype) -> float:
    """The largest `x` of `dtype` with `exp(x)` finite in `dtype`.

    11.09 in float16, 88.72 in float32, 88.5 in bfloat16, 709.78 in float64.

    *Numerics*: log(max) is taken in float64 and rounded toward zero in `dtype`; torch evaluates the
    half types in float32 and rounds the result, so a result up to max + ulp/2 still rounds to max,
    which only widens the margin. Tested on both sides of the edge.
    """
    return _of(_LARGEST_EXP_ARGUMENT, dtype)


def largest_exp2_argument(dtype: torch.dtype) -> float:
    """The largest `x` of `dtype` with `2**x` finite in `dtype` (just under 16, 128, 128, 1024)."""
    return _of(_LARGEST_EXP2_ARGUMENT, dtype)


def largest_sinh_argument(dtype: torch.dtype) -> float:
    """The largest `x` of `dtype` with `sinh(x)` and `cosh(x)` finite: log(2 max), rounded toward zero."""
    return _of(_LARGEST_SINH_ARGUMENT, dtype)


def largest_square_root(dtype: torch.dtype) -> float:
    """The largest `x` of `dtype` with `x * x` finite: sqrt(max), rounded toward zero."""
    return _of(_LARGEST_SQUARE_ROOT, dtype)


def smallest_reciprocal(dtype: torch.dtype) -> float:
    """The smallest positive *normal* `x` of `dtype` with `1 / x` finite.

    *Numerics*: in float16 the smallest normal, 6.1e-5, has the reciprocal 16384; subnormals below
    1.5e-5 overflow. Subnormals are never returned, since they are flushed to 0 on some devices.
    """
    return _of(_SMALLEST_RECIPROCAL, dtype)


def lowest(dtype: torch.dtype) -> float:
    """The most negative finite number of `dtype`: what a mask may be filled with."""
    return _require_float(dtype).min
