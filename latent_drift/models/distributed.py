"""Collectives the models need: differentiable, and the same on every back end."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from latent_drift.errors import UsageError

_REDUCTIONS: Final = ("AVG", "SUM", "MAX", "MIN", "PRODUCT")
_LINEAR: Final = ("AVG", "SUM")


def is_dist_avail_and_initialized() -> bool:
    """True inside an initialised process group, False elsewhere (builds without distributed included)."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes in the default group; 1 outside one."""
    return dist.get_world_size() if is_dist_avail_and_initialized() else 1


def batch_noise_like(x: Tensor) -> Tensor:
    """Standard normal noise for `x` (B, ...): this rank's rows of the noise of the batch of all ranks.

    Ranks whose generators agree (one seed for all, as many rows on each) so draw what one process would draw for the
    whole batch, and not the same noise over and over. In one process it is `torch.randn_like(x)`.
    """
    ranks = world_size()
    if ranks == 1:
        # Compiled ahead of time, several `randn_like` of one value become one and the same draw: torch 2.13 merges equal calls and does not know
        # that one as random (`rand_ops` in torch._functorch.compile_utils); it knows `randn`.
        return torch.randn(x.shape, dtype=x.dtype, device=x.device) if torch.compiler.is_compiling() else torch.randn_like(x)
    rows = x.shape[0]
    first = dist.get_rank() * rows
    return torch.randn((ranks * rows, *x.shape[1:]), dtype=x.dtype, device=x.device)[first : first + rows]


class _SumOverRanks(torch.autograd.Function):
    """y = sum over ranks of x; the adjoint of a sum over ranks is the sum over ranks, so this is its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return _sum_over_ranks(grad_outputs[0])


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return total


def all_reduce(x: Tensor, op: str = "AVG") -> Tensor:
    """The reduction of `x` over all ranks, as a new tensor of the same shape; `x` itself outside a process group.

    Args:
        x: any shape; the same shape and dtype on every rank.
        op: "AVG", "SUM", "MAX", "MIN" or "PRODUCT", in either case.

    Returns:
        The reduced tensor, equal on all ranks. AVG of integers is a float tensor.

    Raises:
        UsageError: an unknown `op`, or a gradient asked through an `op` that has none here.

    *Numerics*: the average is a sum divided once by the number of ranks, on every back end: gloo has no AVG,
    and dividing after a back end that does have one gives 0.75 for the mean of 1 and 2. AVG and SUM can be
    differentiated any number of times. The gradient is that of the sum of all ranks' losses, so a following
    DDP average yields the gradient of their mean.
    """
    name = op.upper()
    if name not in _REDUCTIONS:
        raise UsageError(f"all_reduce: op must be one of {', '.join(_REDUCTIONS)}; got {op!r}")
    if not is_dist_avail_and_initialized():
        return x
    if name in _LINEAR:
        total = _sum_over_ranks(x)
        return total / world_size() if name == "AVG" else total
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError(f"all_reduce: {name} has no gradient here; pass x.detach(), or use one of {', '.join(_LINEAR)}")
    reduced = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, op=getattr(dist.ReduceOp, name))
    return reduced
