"""Layer norm and RMS norm whose statistics are formed in float32 or better, at any scale of the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.numerics.dtypes import accumulation_dtype, require_real

# Rows below this exponent are left alone, bit for bit: their squares, and sums of 2**40 of them, fit float32.
_SAFE_EXPONENT = 40


def _rescaled(x: Tensor, normalized_shape: Sequence[int], function: str) -> Tensor:
    """`x` in its accumulation dtype, with rows whose squares could overflow brought to size one, which normalisation takes out again."""
    require_real(x, function)
    trailing = tuple(x.shape[-len(normalized_shape) :])
    if trailing != tuple(normalized_shape):
        raise UsageError(f"{function}: the last dimensions of x must be {tuple(normalized_shape)}; got shape {tuple(x.shape)}")
    wide = x.to(accumulation_dtype(x.dtype))
    if wide.numel() == 0:
        return wide
    largest = wide.detach().abs().amax(tuple(range(-len(normalized_shape), 0)), keepdim=True)
    exponent = torch.floor(torch.log2(largest.clamp(min=1.0)))
    # inf and NaN rows keep their own fate
    scale = torch.where((exponent > _SAFE_EXPONENT) & largest.isfinite(), torch.exp2(-exponent), torch.ones_like(exponent))
    return wide * scale


class StableLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`: the same state dict and results; any dtype in, the same dtype out.

    Args:
        normalized_shape: the trailing dimensions that are normalised.
        eps: added to the variance; 1e-5 by default, as in torch (the audit's 1e-4 shrinks small signals).
        elementwise_affine: whether there are weight and bias.

    *Numerics*: statistics in float32 (float64 for float64), also where input and parameters have different dtypes and
    under autocast. Rows beyond 2**40 are scaled by a power of two first, since their squares overflow: torch gives
    NaN or 0 there. A layer norm that squares in float16 overflows from 256 on and returns exactly 0.

    >>> import torch
    >>> norm = StableLayerNorm(4)
    >>> norm(torch.tensor([1e30, 2e30, 3e30, 4e30], dtype=torch.bfloat16))
    tensor([-1.3438, -0.4453,  0.4414,  1.3438], dtype=torch.bfloat16, grad_fn=<ToCopyBackward0>)
    """

    def __init__(self, normalized_shape: int | Sequence[int], eps: float | None = None, elementwise_affine: bool = True) -> None:
        super().__init__(
            normalized_shape if isinstance(normalized_shape, int) else list(normalized_shape), 1e-5 if eps is None else eps, elementwise_affine
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the trailing dimensions; same shape and dtype.

        Raises:
            UsageError: `x` is complex, integer or not strided, or its last dimensions are not `normalized_shape`.
        """
        scaled = _rescaled(x, self.normalized_shape, "StableLayerNorm")
        weight = None if self.weight is None else self.weight.to(scaled.dtype)
        bias = None if self.bias is None else self.bias.to(scaled.dtype)
        return F.layer_norm(scaled, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm`: the same state dict and results; any dtype in, the same dtype out.

    Args:
        normalized_shape: the trailing dimensions that are normalised.
        eps: added to the mean square; the machine epsilon of the accumulation dtype by default, as in torch.
        elementwise_affine: whether there is a weight.

    *Numerics*: as `StableLayerNorm`.

    >>> import torch
    >>> RMSNorm(2, elementwise_affine=False)(torch.tensor([300.0, 400.0], dtype=torch.float16))
    tensor([0.8486, 1.1318], dtype=torch.float16)
    """

    def __init__(self, normalized_shape: int | Sequence[int], eps: float | None = None, elementwise_affine: bool = True) -> None:
        super().__init__(normalized_shape if isinstance(normalized_shape, int) else list(normalized_shape), eps, elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the trailing dimensions; same shape and dtype.

        Raises:
            UsageError: `x` is complex, integer or not strided, or its last dimensions are not `normalized_shape`.
        """
        scaled = _rescaled(x, self.normalized_shape, "RMSNorm")
        weight = None if self.weight is None else self.weight.to(scaled.dtype)
        return F.rms_norm(scaled, list(self.normalized_shape), weight, self.eps).to(x.dtype)
