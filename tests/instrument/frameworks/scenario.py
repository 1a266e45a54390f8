"""Trains with somebody else's trainer: plain, guarded, with the framework's own clipping, and with a batch that holds NaN. One process a framework.

A script of this folder gives `train(clip, poisoned, seed)`, ordinary code that knows nothing of us, and calls `report(train)`.
"""

import json
import math
import sys

import torch

import instrument

FAULTY_BATCH = 3


def digest(model):
    """Every parameter as one vector."""
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])


def report(train, versions):
    """Run the scenarios and print what became of them as one JSON object."""

    def run(profile=None, **how):
        if profile is None:
            return digest(train(**how)), None
        with instrument.stable(profile=profile) as guarded:
            model = train(**how)
        return digest(model), guarded

    told = {"versions": versions}
    plain, _ = run(clip=None, poisoned=False)
    again, _ = run(clip=None, poisoned=False)
    healthy, guarded = run("guard", clip=None, poisoned=False)
    told["repeatable"] = torch.equal(plain, again)
    told["healthy"] = {"as_plain": torch.equal(plain, healthy), "events": [e.message for e in guarded.events], "steps": guarded.tally.steps}

    clipped, _ = run(clip=0.05, poisoned=False)
    both, guarded = run("train", clip=0.05, poisoned=False)
    told["clipped_by_the_framework"] = {
        "differs_from_unclipped": not torch.equal(clipped, plain),
        "as_plain": torch.equal(clipped, both),
        "clipped_again": guarded.tally.clipped,
        "events": [e.message for e in guarded.events],
    }

    for name, clip in (("poisoned", None), ("poisoned_and_clipped", 0.05)):
        broken, _ = run(clip=clip, poisoned=True)
        saved, guarded = run("guard", clip=clip, poisoned=True)
        told[name] = {
            "plain_is_finite": bool(broken.isfinite().all()),
            "finite": bool(saved.isfinite().all()),
            "learned": math.isfinite(float(saved.norm())) and not torch.equal(saved, plain),
            "codes": [e.code for e in guarded.events],
            "skipped": guarded.tally.skipped,
            "steps": guarded.tally.steps,
        }
    json.dump(told, sys.stdout)


def batches(count=8, size=4, width=8):
    """Inputs and targets, the same each time."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, width, generator=generator), torch.randn(size, 1, generator=generator)) for _ in range(count)]


def poison(x):
    """The batch with one NaN in it."""
    x = x.clone()
    x.view(-1)[0] = float("nan")
    return x
