"""One pair of gloo processes for all tests of the models that need two: starting them is what takes the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS: Final = 2

Body = Callable[[int], Any]
"""What a rank does inside the process group; its result is saved and comes back."""


def _run(rank: int, bodies: Mapping[str, Body], folder: str) -> None:
    torch.set_num_threads(1)
    for name, body in bodies.items():
        # A group of its own for each, so that none inherits another's state.
        dist.init_process_group("gloo", init_method=f"file://{folder}/{name}.store", rank=rank, world_size=RANKS)
        try:
            torch.save(body(rank), Path(folder) / f"{name}-{rank}.pt")
        finally:
            dist.destroy_process_group()


def on_two_ranks(bodies: Mapping[str, Body], folder: Path) -> dict[str, list[Any]]:
    """What every body returned, by name and rank."""
    mp.spawn(_run, args=(bodies, str(folder)), nprocs=RANKS)
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(RANKS)] for name in bodies}
