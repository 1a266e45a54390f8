"""Long runs of the latent ODE model at the published sizes, with what they reached on the way.

python -m tests.models.ode.recorded --precision float32 --steps 10000 --batch 16
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from latent_drift.models.alphabet import vocab_size
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sample_ode import sample_sequences_ode
from latent_drift.models.sequences import SyntheticTargetDataset
from latent_drift.models.train_ode import train_ode
from tests.models.ode.well_formed import noise_rate, well_formed_rate


def recorded_run(precision: str, steps: int, batch: int, num_slices: int = 64, seed: int = 0, every: int = 1000) -> Iterator[dict[str, Any]]:
    """One record before training and one every `every` steps: losses, skipped steps, samples from the learned prior."""
    torch.manual_seed(seed)
    model = DeterministicLatentODE(vocab_size, latent_size=64, hidden_size=128, embed_size=64, num_slices=num_slices)
    loader = DataLoader(SyntheticTargetDataset(100_000, seed=seed), batch_size=batch, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    stats: dict[str, float] = {}
    began, skipped, largest_norm, finite = time.perf_counter(), 0, 0.0, True
    for done in range(0, steps + 1, every):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            shared, own = sample_sequences_ode(model, 67, 128)
        yield {
            "precision": precision,
            "batch": batch,
            "seed": seed,
            "step": done,
            "seconds": round(time.perf_counter() - began, 1),
            "well_formed_own_z0": well_formed_rate(own),
            "well_formed_shared_z0": well_formed_rate(shared),
            "noise": round(noise_rate(own), 4),
            "skipped": skipped,
            "largest_gradient_norm": largest_norm,
            "parameters_finite": finite,
            **{name: round(value, 4) for name, value in stats.items()},
        }
        if done == steps:
            break
        training = train_ode(
            model, loader, every, loss_weights=(1.0, 0.05, 1.0), optimizer=optimizer, precision=precision, first_step=done, sample_every=0
        )
        stats = training.stats
        skipped += training.skipped
        largest_norm = max(largest_norm, *(record.norm for record in training.steps))
        finite = finite and all(bool(p.isfinite().all()) for p in model.parameters())


def main() -> None:
    """Write the records of a run as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for record in recorded_run(arguments.precision, arguments.steps, arguments.batch, seed=arguments.seed, every=arguments.every):
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
