"""Sharded tensors (DTensor): the part that this process holds, and how many processes hold the same part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latent_drift.numerics.gradients import global_norm
from latent_drift.numerics.shards import copies as copies
from latent_drift.numerics.shards import is_sharded as is_sharded

Ranks = tuple[int, ...]


def local_part(x: Tensor) -> Tensor:
    """The part of `x` that this process holds, sharing its memory; `x` itself if it is an ordinary tensor."""
    if not is_sharded(x):
        return x
    with torch.no_grad():
        part: Tensor = x.to_local()  # type: ignore[attr-defined]
    return part


def mesh_ranks(parameters: Iterable[Tensor]) -> Ranks | None:
    """The global ranks that share these parameters: those of the largest mesh among them; None if no DTensor is among them, if a mesh lies
    outside of the largest, or if the back end is none that moves data between processes."""
    found: set[Ranks] = set()
    for parameter in parameters:
        if is_sharded(parameter):
            mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
            if not all(carries_data(mesh.get_group(dim)) for dim in range(mesh.ndim)):
                return None
            found.add(tuple(sorted(mesh.mesh.flatten().tolist())))
    if not found:
        return None
    largest = max(found, key=len)
    return largest if all(set(ranks) <= set(largest) for ranks in found) and len(largest) > 1 else None


def carries_data(group: Any) -> bool:
    """False for the simulated process groups that torch has for tests and planning."""
    return dist.get_backend(group) not in ("fake", "threaded", "undefined")


def weighted_norm(gradients: Sequence[Tensor], world: int) -> float:
    """This process's contribution to the norm of all gradients: the root of the sum of the contributions' squares over `world` processes is it.

    A part that k processes hold counts 1 / k on each; an ordinary tensor is taken to be the same on all of them.
    """
    parts: dict[int, list[Tensor]] = {}
    for gradient in gradients:
        parts.setdefault(copies(gradient) if is_sharded(gradient) else world, []).append(local_part(gradient))
    return math.hypot(*(global_norm(held) / math.sqrt(count) for count, held in parts.items()))
