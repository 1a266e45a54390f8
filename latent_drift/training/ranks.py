"""The processes of a run that `torchrun` started: who they are, what they agree on, and that only the first one writes."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from latent_drift.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run; one process alone is rank 0 of 1."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def mean(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The mean of each value over the processes, in float64; the values themselves in one process."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return [float(value) / self.count for value in total.tolist()]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first process, on all; what it raises there, everywhere.

        Raises:
            FirstRankError: on the others, where the first one failed.
        """
        if self.count == 1:
            return make()
        box: list[object] = [None, None]
        failure: BaseException | None = None
        if self.is_first:
            try:
                box[0] = make()
            except Exception as error:  # told to the other processes, then raised as it is
                failure = error
                box[1] = str(error)
        dist.broadcast_object_list(box, src=0)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise FirstRankError(str(box[1]))
        return box[0]  # type: ignore[return-value]


class FirstRankError(UsageError):
    """The first process of a run failed, and has said why; this one leaves with it."""


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun's environment describes, their process group open inside the block; one process outside torchrun.

    gloo for a CPU, NCCL for CUDA.

    Raises:
        UsageError: the environment describes half a run.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if not count.isdecimal() or int(count) <= 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} not set; "
            "start several processes with: torchrun --nproc-per-node N -m latent_drift train ..."
        )
    # Its functions take the default group as a default argument: imported with a group there, as DistributedDataParallel does, they keep that
    # group, and its threads, to the end of the interpreter and into it.
    import torch.distributed.nn.functional  # noqa: F401

    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        if dist.is_initialized():
            gc.collect()  # whatever refers to the group keeps its threads; in the interpreter's last moments one of them can abort the process
            dist.destroy_process_group()
