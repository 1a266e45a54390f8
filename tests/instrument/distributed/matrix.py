"""Trains the same small model with one fault on one rank, for each kind of model, place, rank and policy, and tells what became of it.

Run by the tests, once a rank: `matrix.py FOLDER brief|full`. Every case is compared with a plain run of the same script in which all ranks leave the
faulty step out, so that "skipped together" means equal to the last bit.
"""

import contextlib
import gc
import itertools
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

STEPS, FAULT = 6, 3
NAN = float("nan")

MODELS = ("ddp", "ddp-buffers", "ddp-accumulate", "fsdp2", "fsdp2-accumulate")
PLACES = ("forward", "data", "backward", "step", "update")
POLICIES = ("skip", "zero")


def build(kind):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)]
    if kind == "ddp-buffers":
        layers.insert(1, nn.BatchNorm1d(16))
    net = nn.Sequential(*layers)
    if kind.startswith("fsdp2"):
        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        return fully_shard(net)
    return DistributedDataParallel(net)


class Touchy(torch.optim.Adam):
    """Adam in which a rank can be made to spoil its own update."""

    spoil = False

    def step(self, closure=None):
        super().step(closure)
        if self.spoil:
            with torch.no_grad():
                held = next(iter(self.param_groups[0]["params"]))
                (held.to_local() if hasattr(held, "to_local") else held).view(-1)[0] = NAN


def batches(rank):
    generator = torch.Generator().manual_seed(100 + rank)
    return [(torch.randn(8, 6, generator=generator), torch.randn(8, 2, generator=generator)) for _ in range(2 * STEPS)]


def train(kind, place, bad_rank, *, leave_out=False):
    """The script: knows nothing of any guard. With `leave_out` all ranks skip the faulty step by hand instead of the fault."""
    rank = dist.get_rank()
    model = build(kind)
    optimizer = (Touchy if place == "update" else torch.optim.Adam)(model.parameters(), lr=1e-2)
    data = iter(batches(rank))
    accumulate = 2 if kind.endswith("accumulate") else 1
    for step in range(STEPS):
        bad = step == FAULT and rank == bad_rank and not leave_out
        optimizer.zero_grad()
        for part in range(accumulate):
            x, y = next(data)
            last = part == accumulate - 1
            hit = bad and last
            if hit and place == "data":
                x = x.clone()
                x[0, 0] = NAN
            if kind.startswith("fsdp2"):
                model.set_requires_gradient_sync(last)
                quiet = contextlib.nullcontext()
            else:
                quiet = contextlib.nullcontext() if last else model.no_sync()
            with quiet:
                out = model(x)
                if hit and place == "forward":
                    out = out * torch.tensor(NAN)
                if hit and place == "backward":
                    out.register_hook(lambda g: g * NAN)
                ((out - y) ** 2).mean().backward()
        if bad and place == "step":
            held = next(model.parameters()).grad
            (held.to_local() if hasattr(held, "to_local") else held).view(-1)[0] = NAN
        if place == "update":
            optimizer.spoil = bad
        if not (leave_out and step == FAULT):
            optimizer.step()
    return model, optimizer


def numbers(model, optimizer):
    """Every parameter and optimizer state of this rank as one vector of bytes."""
    held = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))]
    parts = [(t.to_local() if hasattr(t, "to_local") else t).detach().double().reshape(-1) for t in held]
    return torch.cat(parts)


def equal_everywhere(vector):
    others = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(others, vector)
    return all(torch.equal(vector, other) for other in others)


def cases(extent="full"):
    """(kind, place, policy, bad rank) of each case; `brief` is what the gate has time for."""
    for kind, place, policy, bad_rank in itertools.product(MODELS, PLACES, POLICIES, range(2)):
        if policy == "zero" and place in ("update", "forward", "data"):
            continue  # an update that spoils a parameter is put back whatever the policy for gradients; forward and data are as backward
        if extent == "brief":
            once = policy == "skip" and (kind in ("ddp-buffers", "fsdp2") or (kind == "ddp-accumulate" and place == "step"))
            if not (once or (kind == "fsdp2" and place == "step") or (kind == "ddp" and place == "step" and policy == "zero")):
                continue
        yield kind, place, policy, bad_rank


def clipped_alike():
    """The same model replicated and sharded, clipped hard: the norm over the shards is that of the whole."""
    whole, counts = [], []
    for kind in ("ddp", "fsdp2"):
        with instrument.stable(profile="train", gradient={"clip": {"kind": "norm", "max_norm": 0.05}}) as run:
            model, _ = train(kind, "forward", -1)
        counts.append(run.tally.clipped)
        parts = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        whole.append(torch.cat([p.detach().double().reshape(-1) for p in parts]))
    return {"clipped": counts, "difference": float((whole[0] - whole[1]).abs().max())}


def main():
    folder, extent = Path(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    gc.freeze()  # every block looks once among all objects for optimizers: here are sixty blocks, and none of the objects of torch is one
    expected = {}
    results = []
    for kind in MODELS:
        for faulty in ("none", "left-out"):
            place = "forward"
            model, optimizer = train(kind, place, -1, leave_out=faulty == "left-out")
            expected[kind, faulty] = numbers(model, optimizer)
        with instrument.stable(profile="guard") as run:
            model, optimizer = train(kind, "forward", -1)
        healthy = numbers(model, optimizer)
        results.append({"kind": kind, "place": "none", "events": len(run.events), "as_plain": torch.equal(healthy, expected[kind, "none"])})
    results.append({"kind": "clip", "place": "none", **clipped_alike()})
    for kind, place, policy, bad_rank in cases(extent):
        began = time.perf_counter()
        with instrument.stable(profile="guard", gradient={"nonfinite": policy}) as run:
            model, optimizer = train(kind, place, bad_rank)
        mine = numbers(model, optimizer)
        results.append(
            {
                "kind": kind,
                "place": place,
                "policy": policy,
                "bad_rank": bad_rank,
                "skipped": run.tally.skipped,
                "steps": run.tally.steps,
                "finite": bool(mine.isfinite().all()),
                "agree": kind.startswith("fsdp2") or equal_everywhere(mine),
                "as_left_out": torch.equal(mine, expected[kind, "left-out"]),
                "codes": [event.code for event in run.events],
                "messages": [event.message for event in run.events],
                "seconds": time.perf_counter() - began,
            }
        )
        (folder / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
