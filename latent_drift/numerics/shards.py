"""Sharded tensors (DTensor): whose part is where, and norms over all parts.

The trap: each process clips by the norm of its own shards, so that the parts of one gradient are scaled by different factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latent_drift.numerics.gradients import global_norm, tensor_norms


def is_sharded(x: Any) -> bool:
    """True for a DTensor. Asked by what it can do: importing its class would cost every script that has none."""
    return hasattr(x, "to_local") and hasattr(x, "device_mesh")


def copies(x: Any) -> int:
    """How many processes of its mesh hold the same part of a DTensor."""
    mesh = x.device_mesh
    return math.prod(mesh.size(dim) for dim, placement in enumerate(x.placements) if placement.is_replicate())


def joined_norm(gradients: Sequence[Tensor], norm_type: float = 2.0) -> float:
    """`global_norm` over the parts of all processes: the same number on each of them, NaN and inf included.

    Every process of a mesh must call it with the same tensors; without DTensors nothing is exchanged.
    """
    if not any(is_sharded(g) for g in gradients):
        return global_norm(gradients, norm_type)
    return _combined(joined_norms(gradients, norm_type), norm_type)


def joined_norms(tensors: Sequence[Tensor], norm_type: float = 2.0) -> list[float]:
    """`tensor_norms`, of a DTensor over the parts of all processes; two exchanges a mesh, however many tensors there are.

    *Numerics*: parts are joined in float64 with the largest taken out first, so nothing overflows on the way.
    """
    whole: list[Any] = [_unreduced(t) for t in tensors]
    norms = tensor_norms(whole, norm_type)
    meshes: dict[Any, list[int]] = {}
    for index, tensor in enumerate(whole):
        if is_sharded(tensor):
            meshes.setdefault(tensor.device_mesh, []).append(index)
    for mesh, members in meshes.items():
        device = whole[members[0]].to_local().device
        local = torch.tensor([norms[i] for i in members], dtype=torch.float64)
        bad = torch.where(local.isnan(), 2.0, torch.where(local.isinf(), 1.0, 0.0)).double()
        local = torch.where(bad > 0, torch.zeros_like(local), local)
        peak, worst = _reduced(torch.cat([local, bad]).to(device), mesh, torch.distributed.ReduceOp.MAX).cpu().chunk(2)
        if math.isinf(norm_type):
            total = peak
        else:
            share = torch.tensor([copies(whole[i]) for i in members], dtype=torch.float64)
            powers = torch.where(peak > 0, local / torch.where(peak > 0, peak, torch.ones_like(peak)), torch.zeros_like(peak)) ** norm_type / share
            total = peak * _reduced(powers.to(device), mesh, torch.distributed.ReduceOp.SUM).cpu() ** (1.0 / norm_type)
        total = torch.where(worst == 2, torch.nan, torch.where(worst == 1, torch.inf, total))
        for index, value in zip(members, total.tolist(), strict=True):
            norms[index] = value
    return norms


def _unreduced(x: Any) -> Any:
    """A DTensor that is a sum still to be formed, formed; all else as it is."""
    return x.full_tensor() if is_sharded(x) and any(p.is_partial() for p in x.placements) else x


def _combined(norms: Sequence[float], norm_type: float) -> float:
    if any(math.isnan(n) for n in norms):
        return math.nan
    peak = max(norms, default=0.0)
    if peak == 0.0 or math.isinf(peak) or math.isinf(norm_type):
        return peak
    return float(peak * math.fsum((n / peak) ** norm_type for n in norms) ** (1.0 / norm_type))


def _reduced(x: Tensor, mesh: Any, operation: Any) -> Tensor:
    """`x` reduced over all processes of a mesh."""
    for dim in range(mesh.ndim):
        torch.distributed.all_reduce(x, op=operation, group=mesh.get_group(dim))
    return x
