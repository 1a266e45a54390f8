"""Scripts whose processes do not do the same, and run all the same without us: none may hang, or be changed, because it is guarded.

Run by the tests, once a rank: `uneven.py FOLDER`.
"""

import contextlib
import gc
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import instrument

STEPS = 5
NAN = float("nan")


def network(*, buffers=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if buffers else nn.Tanh(), nn.Linear(8, 1))


def data(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(8, 4, generator=generator) for _ in range(2 * STEPS)]


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def loop(model, rank, step=lambda optimizer, loss, index: optimizer.step()):
    optimizer = adam(model)
    for index, x in enumerate(data(rank)[:STEPS]):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        step(optimizer, loss, index)
    return model


def one_rank_leaves_a_step_out(rank):
    return loop(DistributedDataParallel(network(buffers=True)), rank, lambda o, loss, i: None if (rank, i) == (1, 2) else o.step())


def one_rank_leaves_its_last_step_out(rank):
    return loop(DistributedDataParallel(network()), rank, lambda o, loss, i: None if (rank, i) == (1, STEPS - 1) else o.step())


def one_rank_leaves_a_step_of_its_shard_out(rank):
    return loop(fully_shard(network()), rank, lambda o, loss, i: None if (rank, i) == (1, 2) else o.step())


def an_error_between_backward_and_step(rank):
    def step(optimizer, loss, index):
        with contextlib.suppress(ValueError):
            if (rank, index) == (0, 1):
                raise ValueError("caught by the script")
            optimizer.step()

    return loop(DistributedDataParallel(network()), rank, step)


def steps_only_where_the_loss_is_finite(rank):
    model = DistributedDataParallel(network())
    optimizer = adam(model)
    for index, x in enumerate(data(rank)[:STEPS]):
        optimizer.zero_grad()
        loss = model(x * NAN if (rank, index) == (1, 2) else x).square().mean()
        loss.backward()
        if loss.isfinite():
            optimizer.step()
    return model


def _fails_again_and_again(model, rank):
    optimizer = adam(model)
    for index, x in enumerate(data(rank)):
        optimizer.zero_grad()
        model(x * NAN if rank == 1 and 2 <= index < 6 else x).square().mean().backward()
        optimizer.step()
    return model


def one_rank_fails_again_and_again(rank):
    return _fails_again_and_again(DistributedDataParallel(network(buffers=True)), rank)


def one_rank_of_shards_fails_again_and_again(rank):
    torch.use_deterministic_algorithms(True)  # memory that nothing was written to holds NaN then, in the gathered parameters too
    try:
        return _fails_again_and_again(fully_shard(network()), rank)
    finally:
        torch.use_deterministic_algorithms(False)


def each_its_own_model(rank):
    model = network()
    optimizer = adam(model)
    for x in data(rank)[: STEPS + 3 * rank]:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


def gradients_averaged_by_hand(rank):
    def step(optimizer, loss, index):
        for group in optimizer.param_groups:
            for p in group["params"]:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        optimizer.step()

    return loop(network(), rank, step)


def one_rank_has_more_data(rank):
    model = DistributedDataParallel(network())
    optimizer = adam(model)
    with model.join():
        for x in data(rank)[: STEPS + 3 * rank]:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return model


def one_rank_evaluates(rank):
    model = DistributedDataParallel(network())

    def step(optimizer, loss, index):
        if rank == 0:
            model(data(0)[0]).sum().item()
        optimizer.step()
        if rank == 0:
            with torch.no_grad():
                model(data(0)[0])

    return loop(model, rank, step)


def two_models_and_optimizers(rank):
    maker, judge = DistributedDataParallel(network()), DistributedDataParallel(nn.Linear(1, 1))
    optimizers = adam(maker), adam(judge)
    for x in data(rank)[:STEPS]:
        fake = maker(x)
        for parts, optimizer in (((fake.detach(),), optimizers[1]), ((fake,), optimizers[0])):
            optimizer.zero_grad()
            judge(*parts).square().mean().backward()
            optimizer.step()
    return maker


def one_model_two_optimizers(rank):
    model = DistributedDataParallel(network())
    first, last = torch.optim.Adam(model.module[0].parameters()), torch.optim.SGD(model.module[2].parameters(), lr=0.1)
    for x in data(rank)[:STEPS]:
        model.zero_grad()
        model(x).square().mean().backward()
        first.step()
        last.step()
    return model


def several_passes_before_a_step(rank):
    model = DistributedDataParallel(network())
    optimizer = adam(model)
    for index, x in enumerate(data(rank)):
        model(x).square().mean().backward()
        if index % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    return model


SCRIPTS = [
    one_rank_leaves_a_step_out,
    one_rank_leaves_its_last_step_out,
    one_rank_leaves_a_step_of_its_shard_out,
    an_error_between_backward_and_step,
    steps_only_where_the_loss_is_finite,
    one_rank_fails_again_and_again,
    one_rank_of_shards_fails_again_and_again,
    each_its_own_model,
    gradients_averaged_by_hand,
    one_rank_has_more_data,
    one_rank_evaluates,
    two_models_and_optimizers,
    one_model_two_optimizers,
    several_passes_before_a_step,
]
GUARDED = {"both": (0, 1), "only-0": (0,), "rollback": (0, 1)}
AGAIN_AND_AGAIN = (one_rank_fails_again_and_again, one_rank_of_shards_fails_again_and_again)
ROLLBACK = {"recovery": {"rollback": True, "rollback_after": 2, "snapshot_every": 1}}


def variants(script):
    """In which ways a script is run guarded."""
    return ["both", *(["only-0"] if script is several_passes_before_a_step else []), *(["rollback"] if script in AGAIN_AND_AGAIN else [])]


def numbers(model):
    return torch.cat([(p.to_local() if hasattr(p, "to_local") else p).detach().reshape(-1) for p in model.parameters()])


def main():
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    gc.freeze()  # every block looks once among all objects for optimizers, and none of torch's own is one
    results = []
    for script in SCRIPTS:
        plain = numbers(script(rank))
        for name in variants(script):
            guarded, overrides = GUARDED[name], ROLLBACK if name == "rollback" else {}
            dist.barrier()
            began = time.perf_counter()
            with instrument.stable(profile="guard", **overrides) if rank in guarded else contextlib.nullcontext() as run:
                mine = numbers(script(rank))
            results.append(
                {
                    "script": script.__name__,
                    "guarded": name,
                    "seconds": time.perf_counter() - began,
                    "as_plain": torch.equal(mine, plain),
                    "finite": bool(mine.isfinite().all()),
                    "plain_is_finite": bool(plain.isfinite().all()),
                    "events": [e.code for e in run.events] if run is not None else [],
                    "rolled_back": run.tally.rolled_back if run is not None else 0,
                    "parameters": mine.tolist(),
                }
            )
            (folder / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
