"""Small computations that together reach every family of guarded operations, for what is not a plain tensor or not a plain call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def elementwise(x: Tensor) -> Tensor:
    """Poles, corners and overflow, away from all of them."""
    positive = x.abs() + 0.5
    small = torch.tanh(x) * 0.5
    out = torch.exp(x) + x.sinh() + torch.expm1(x) + torch.log(positive) + positive.log2() + torch.log1p(positive)
    out = out + torch.sqrt(positive) + positive.rsqrt() + torch.reciprocal(positive) + x / positive + torch.div(1.0, positive)
    return out + positive**0.5 + torch.pow(positive, 1.5) + 2.0**x + torch.acos(small) + small.asin() + torch.atan2(x, positive)


def rows(x: Tensor) -> Tensor:
    """softmax's family, norms and statistics along the last dimension, masks."""
    masked = x.masked_fill(x > x.mean() + 10.0, float("-inf"))
    out = torch.softmax(x, dim=-1) + F.log_softmax(masked, dim=-1)
    out = out + torch.logsumexp(x, dim=-1, keepdim=True) + x.norm(dim=-1, keepdim=True) + torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return out + x.std(dim=-1, keepdim=True) + torch.var(x, dim=-1, keepdim=True) + F.normalize(x, dim=-1) + (x.abs() + 0.5).cumprod(-1)


def losses(x: Tensor) -> Tensor:
    """Losses that end in a logarithm or a division."""
    target = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    probability = torch.sigmoid(x)
    out = F.cross_entropy(x, target) + F.binary_cross_entropy(probability, torch.full_like(probability, 0.25))
    out = out + F.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.75))
    return out + F.kl_div(F.log_softmax(x, -1), F.softmax(x + 1.0, -1), reduction="batchmean") + F.poisson_nll_loss(x, torch.ones_like(x))


def decompositions(x: Tensor) -> Tensor:
    """Linear algebra of a well-conditioned matrix."""
    matrix = x[:, : x.shape[0]] @ x[:, : x.shape[0]].mT + 3.0 * torch.eye(x.shape[0], dtype=x.dtype, device=x.device)
    out = torch.linalg.cholesky(matrix).sum() + torch.linalg.inv(matrix).sum() + torch.linalg.solve(matrix, x).sum()
    return out + torch.logdet(matrix) + torch.linalg.eigvalsh(matrix).sum() + torch.linalg.svdvals(matrix).sum()


CALLS: dict[str, Callable[[Any], Any]] = {f.__name__: f for f in (elementwise, rows, losses, decompositions)}
"""Each takes a floating matrix of at least as many columns as rows."""


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    """A matrix that every call accepts."""
    return torch.randn(3, 5, dtype=dtype, generator=torch.Generator().manual_seed(50))
