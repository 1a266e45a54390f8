"""The softmax family, log-sum-exp and norms, with the active config's answer for rows that have none.

Thin faces of `latent_drift.numerics.reductions`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latent_drift.numerics import reductions
from latent_drift.numerics.dtypes import require_real
from latent_drift.stability.settings import settings_for


def stable_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """torch's softmax, and zeros (or what the config says) for a row of nothing but -inf.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: torch subtracts the maximum itself; rows with a finite maximum are its result, bit for bit. +inf entries share the
    whole weight. Rows without an answer have gradient 0. Differentiates twice.

    >>> import torch
    >>> stable_softmax(torch.tensor([[float("-inf"), float("-inf")], [1e30, 0.0]]))
    tensor([[0., 0.],
            [1., 0.]])
    """
    return reductions.softmax(x, dim, settings_for(x, "stable_softmax").empty_rows)


def stable_log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """torch's log_softmax, and -inf throughout for a row of nothing but -inf (the log of softmax's zeros), with gradient 0.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    >>> import torch
    >>> stable_log_softmax(torch.tensor([0.0, 0.0]))
    tensor([-0.6931, -0.6931])
    """
    require_real(x, "stable_log_softmax")
    return reductions.log_softmax(x, dim)


def log_sum_exp(x: Tensor, dim: int | Sequence[int] = -1, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over `dim`; -inf for a row of -inf and for an empty one, +inf for a row with +inf, both with gradient 0.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: within 2 ulp of the larger of result and largest entry; half types are summed in float32.

    >>> import torch
    >>> log_sum_exp(torch.tensor([[1000.0, 1000.0], [float("-inf"), float("-inf")]]))
    tensor([1000.6932,      -inf])
    """
    return reductions.logsumexp(x, dim, keepdim)


def stable_norm(x: Tensor, p: float = 2.0, dim: int | Sequence[int] | None = None, eps: float | None = None, keepdim: bool = False) -> Tensor:
    """The p-norm over `dim` (everything if None) without overflow or underflow on the way; gradient 0 at the zero vector.

    Args:
        x: any shape.
        p: order, inf and -inf included.
        dim: dimension or dimensions.
        eps: if given, the smallest result (so that one may divide by it), with gradient 0 below.
        keepdim: whether reduced dimensions stay, with size 1.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: about (2 + log2 n) ulp at every scale; the naive form overflows in float16 from 256 on.

    >>> import torch
    >>> stable_norm(torch.tensor([300.0, 400.0], dtype=torch.float16))
    tensor(500., dtype=torch.float16)
    """
    require_real(x, "stable_norm")
    result = reductions.norm(x, p, dim, keepdim)
    return result if eps is None else result.clamp(min=eps)


def stable_normalize(x: Tensor, dim: int | Sequence[int] = -1, eps: float | None = None) -> Tensor:
    """x / max(||x||, eps): unit vectors along `dim`, 0 for the zero vector.

    Args:
        x: any shape.
        dim: dimension or dimensions of the vectors.
        eps: smallest divisor; the config's `division_eps` for the dtype by default.

    Raises:
        UsageError: `x` is complex, integer or not strided, or eps is not positive and finite.

    *Numerics*: a few ulp at every scale; gradient at most 1/eps.

    >>> import torch
    >>> stable_normalize(torch.tensor([3e-12, 4e-12]))
    tensor([0.6000, 0.8000])
    """
    return reductions.normalize(x, dim, settings_for(x, "stable_normalize").division_eps if eps is None else eps)
