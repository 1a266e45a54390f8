"""The KL divergence of diagonal normals from a shared one, for batches so small that kernel calls are its cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latent_drift.models.plain_layers import can_fuse


def small_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    """The mean over (batch, dim) of KL(N(mean, exp(logvar)) || N(prior_mean, exp(prior_logvar))), in nats: a float64 scalar.

    Args:
        mean, logvar: (batch, dim), float32 or narrower, log-variances bounded so that exp of a difference stays finite.
        prior_mean, prior_logvar: (dim,).

    *Numerics*: exp(d) - 1 - d cancels near d = 0. In float64 what is lost is below 1e-16 |d|, and the terms of half and single precision
    differences stay >= 0: the values of `numerics.gaussian.kl_divergence` for a quarter of its kernel calls.
    """
    if not can_fuse(mean, (logvar, prior_mean, prior_logvar)):
        return _mean_kl(mean, logvar, prior_mean, prior_logvar)
    kl: Tensor = _Kl.apply(mean, logvar, prior_mean, prior_logvar)  # type: ignore[no-untyped-call]
    return kl


def _terms(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ratio of variances less 1, its logarithm, and the offset of the means with its product with the prior's precision."""
    difference = (logvar - prior_logvar).double()
    offset = (mean - prior_mean).double()
    return torch.expm1(difference), difference, offset, offset * torch.exp(-prior_logvar).double()


def _mean_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    excess, difference, offset, weighted = _terms(mean, logvar, prior_mean, prior_logvar)
    return 0.5 * torch.addcmul(excess - difference, offset, weighted).mean()


class _Kl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *moments: Tensor) -> Tensor:
        excess, difference, offset, weighted = _terms(*moments)
        ctx.save_for_backward(*moments, excess, offset, weighted)
        return 0.5 * torch.addcmul(excess - difference, offset, weighted).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *moments, excess, offset, weighted = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are those of the formula
            found = torch.autograd.grad(_mean_kl(*moments), [m for m in moments if m.requires_grad], grads, create_graph=True)
            each = iter(found)
            return tuple(next(each) if m.requires_grad else None for m in moments)
        scale = grads[0] / excess.numel()
        by_offset, by_difference = weighted * scale, excess * (0.5 * scale)
        by_prior_logvar = torch.addcmul(by_difference, offset, by_offset, value=0.5).sum(0)
        mean, logvar, prior_mean, prior_logvar = moments
        return (
            by_offset.to(mean.dtype),
            by_difference.to(logvar.dtype),
            -by_offset.sum(0).to(prior_mean.dtype),
            -by_prior_logvar.to(prior_logvar.dtype),
        )
