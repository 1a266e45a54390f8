"""Long runs of the latent ODE model at the published sizes, with what they reached on the way.

python -m tests.models.ode.recorded --precision float32 --steps 10000 --batch 16
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from latent_drift.models.alphabet import vocab_size
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sample_ode import sample_sequences_ode
from latent_drift.models.sequences import SyntheticTargetDataset
from latent_drift.models.train_ode import OdeStep, train_ode
from tests.models.ode.well_formed import noise_rate, well_formed_rate


def recorded_run(
    precision: str,
    steps: int,
    batch: int,
    num_slices: int = 64,
    seed: int = 0,
    every: int = 1000,
    samples: int = 128,
    report: Callable[[dict[str, Any]], object] | None = None,
) -> list[dict[str, Any]]:
    """One record before training and one every `every` steps: losses, skipped steps, samples from the learned prior.

    The run is one call of `train_ode`, so that a loss scale lives through it; `report` gets each record as soon as it is made.
    """
    torch.manual_seed(seed)
    model = DeterministicLatentODE(vocab_size, latent_size=64, hidden_size=128, embed_size=64, num_slices=num_slices)
    loader = DataLoader(SyntheticTargetDataset(100_000, seed=seed), batch_size=batch, shuffle=True)
    taken: list[OdeStep] = []
    records: list[dict[str, Any]] = []
    began = time.process_time()

    def record() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            shared, own = sample_sequences_ode(model, 67, samples)
        healthy = [step for step in taken if not step.skipped]
        last = healthy[-1] if healthy else None
        made: dict[str, Any] = {
            "precision": precision,
            "batch": batch,
            "seed": seed,
            "step": len(taken),
            "cpu_seconds": round(time.process_time() - began, 1),
            "well_formed_own_z0": well_formed_rate(own),
            "well_formed_shared_z0": well_formed_rate(shared),
            "noise": round(noise_rate(own), 4),
            "skipped": len(taken) - len(healthy),
            "losses_finite": all(math.isfinite(step.loss) for step in taken),
            "parameters_finite": all(bool(p.isfinite().all()) for p in model.parameters()),
            "largest_gradient_norm": round(max((step.norm for step in healthy), default=0.0), 4),
            "recon": None if last is None else round(last.recon, 4),
            "latent_ep": None if last is None else round(last.latent_ep, 4),
            "ode_reg": None if last is None else round(last.ode_reg, 4),
        }
        records.append(made)
        if report is not None:
            report(made)

    def on_step(step: OdeStep) -> None:
        taken.append(step)
        if len(taken) % every == 0:
            record()

    record()
    train_ode(model, loader, steps, loss_weights=(1.0, 0.05, 1.0), precision=precision, sample_every=0, on_step=on_step)
    return records


def main() -> None:
    """Write the records of a run as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    def write(record: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
        sys.stdout.flush()

    recorded_run(arguments.precision, arguments.steps, arguments.batch, seed=arguments.seed, every=arguments.every, report=write)


if __name__ == "__main__":
    main()
