"""Which tensors the numerics accept, and in which dtype they accumulate."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.numerics.limits import FLOAT_DTYPES

_HALF = (torch.float16, torch.bfloat16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over `dtype` are formed: float32 for the half types, else `dtype` itself."""
    return torch.float32 if dtype in _HALF else dtype


def require_real(x: object, function: str, argument: str = "x") -> Tensor:
    """`x` itself if it is a strided tensor of a real floating dtype.

    Raises:
        UsageError: not a tensor, or complex, integer, 8-bit, sparse, nested or quantised; the message names which.
    """
    if not isinstance(x, Tensor):
        raise UsageError(f"{function}: {argument} must be a tensor, got {type(x).__name__}; wrap it with torch.as_tensor")
    if x.is_sparse or x.layout is not torch.strided or x.is_nested:
        kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise UsageError(f"{function}: {argument} must be a dense (strided) tensor, got a {kind} one; call .to_dense() or .to_padded_tensor() first")
    if x.dtype not in FLOAT_DTYPES:
        what = "take .real, .imag or .abs() first" if x.is_complex() else "convert it with .float() first"
        raise UsageError(f"{function}: {argument} must be float16, bfloat16, float32 or float64, got {x.dtype} of shape {tuple(x.shape)}; {what}")
    return x
