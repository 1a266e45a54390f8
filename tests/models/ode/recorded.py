"""Long runs of the latent ODE model at the published sizes, with what they reached on the way.

python -m tests.models.ode.recorded --name fp16 > tests/models/ode/recorded/fp16.jsonl
python -m tests.models.ode.recorded --precision float32 --steps 10000 --batch 16
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import DataLoader

from latent_drift.models.alphabet import vocab_size
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sample_ode import sample_sequences_ode
from latent_drift.models.sequences import SyntheticTargetDataset
from latent_drift.models.train_ode import OdeStep, train_ode
from tests.models.ode.well_formed import noise_rate, well_formed_rate

RECORDED: Final = Path(__file__).with_name("recorded")
"""Where runs are kept, one file of JSON lines each."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is recorded: at 64 slices, seed 0, with a record every `every` steps and one before the first."""

    precision: str
    batch: int
    steps: int
    every: int = 1000


RUNS: Final = {
    "fp32": Run("float32", 16, 10_000),
    "bf16": Run("bfloat16", 16, 10_000),
    "fp16": Run("float16", 16, 10_000),
    "b1": Run("float32", 1, 10_000),
    "b2": Run("float32", 2, 10_000),
    "b4": Run("float32", 4, 10_000),
    "b64": Run("float32", 64, 1000, every=100),
    "b256": Run("float32", 256, 500, every=100),
}
"""By the name of the file."""

LEARNED_AFTER: Final = (6000, 16)
"""Steps and batch from which a run's samples are judged: a shorter or noisier one shows only that every number stays finite."""


def read_records(name: str) -> list[dict[str, Any]]:
    """The records of the run kept as `name`."""
    lines = (RECORDED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def faults(records: list[dict[str, Any]], run: Run) -> list[str]:
    """What is missing from the records of `run`, or says that it was not sound; empty for a whole run without a bad number or a skipped step."""
    if not records:
        return ["no record"]
    found = []
    steps = [record["step"] for record in records]
    if steps != list(range(0, run.steps + 1, run.every)):
        found.append(f"step: expected 0 to {run.steps} by {run.every}; got {steps}")
    for record in records:
        where = f"at step {record['step']}"
        for key, expected in (("precision", run.precision), ("batch", run.batch), ("seed", 0), ("skipped", 0)):
            if record[key] != expected:
                found.append(f"{key} is {record[key]} {where}; expected {expected}")
        found += [f"{key} is {record[key]} {where}" for key in ("losses_finite", "parameters_finite") if record[key] is not True]
        numbers = ("largest_gradient_norm", "recon", "latent_ep", "ode_reg") if record["step"] else ("largest_gradient_norm",)
        found += [f"{key} is {record[key]} {where}" for key in numbers if not (isinstance(record[key], float) and math.isfinite(record[key]))]
    if not all(earlier["cpu_seconds"] < later["cpu_seconds"] for earlier, later in pairwise(records)):
        found.append("cpu_seconds do not increase")
    first, last = records[0], records[-1]
    if first["well_formed_own_z0"] >= 0.05:
        found.append(f"well-formed: {first['well_formed_own_z0']} before training")
    if run.steps >= LEARNED_AFTER[0] and run.batch >= LEARNED_AFTER[1]:
        if not (last["recon"] or math.inf) < 1.0:
            found.append(f"recon is {last['recon']} at the end; a model that knows the alphabet alone has 3.4")
        rate = sum(record["well_formed_own_z0"] for record in records[-3:]) / 3
        if rate < 0.8 or last["well_formed_own_z0"] < 0.7:
            found.append(f"well-formed: {rate:.2f} over the last three records, {last['well_formed_own_z0']:.2f} at the end")
        if abs(last["noise"] - 1 / 16) > 0.02:
            found.append(f"noise is {last['noise']}; expected 1/16")
    return found


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
    parser.add_argument("--name", choices=RUNS, help="one of the runs that are kept, in place of the other arguments")
    arguments = parser.parse_args()
    run = RUNS[arguments.name] if arguments.name else Run(arguments.precision, arguments.batch, arguments.steps, arguments.every)

    def write(record: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
        sys.stdout.flush()

    recorded_run(run.precision, run.steps, run.batch, seed=arguments.seed, every=run.every, report=write)


if __name__ == "__main__":
    main()
