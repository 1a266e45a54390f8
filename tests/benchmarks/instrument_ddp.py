"""What guarding costs two processes that train one model under gloo DistributedDataParallel."""

from __future__ import annotations

import multiprocessing
import tempfile
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import distributed

from tests.benchmarks.harness import Row, quartiles, seconds

PAIRS = 21
REPEATS = 2
FIRST_STEPS = 5


def _worker(rank: int, meeting: str, results: Connection) -> None:
    """Both ranks open and leave the block at the same steps: the collectives of one would wait for the other otherwise."""
    import instrument
    from tests.benchmarks.instrument_cost import SmallGpt, training_step

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(SmallGpt())
    torch.manual_seed(rank)
    step = training_step(model, torch.randint(200, (16, 96)), torch.randint(200, (16, 96)))
    ratios = []
    for pair in range(PAIRS + 1):
        distributed.barrier()
        with instrument.stable(profile="guard"):
            seconds(step, FIRST_STEPS)
            guarded = seconds(step, REPEATS)
        distributed.barrier()
        seconds(step, FIRST_STEPS)
        plain = seconds(step, REPEATS)
        if pair:  # the first warms up
            ratios.append(guarded / plain)
    if rank == 0:
        results.send(ratios)
    distributed.destroy_process_group()


def ddp_rows() -> list[Row]:
    """The median ratio over interleaved pairs, as rank 0 sees it."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        workers = [context.Process(target=_worker, args=(rank, meeting, sending)) for rank in range(2)]
        for worker in workers:
            worker.start()
        sending.close()
        try:
            ratios: list[float] = receiving.recv()
        finally:
            for worker in workers:
                worker.join()
    low, middle, high = quartiles(ratios)
    return [Row("instrument", "two processes under gloo DDP, small GPT: guard", middle, low, high, PAIRS, bar=1.02, note="one thread a process")]
