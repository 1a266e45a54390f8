"""The toolbox's success figures as runs that can be repeated: what `pytest -m slow` asserts, written down as JSON lines.

`python -m tests.stability.success_figures ode|precision|batches [--steps N]`; the records in `tests/stability/recorded` came from these.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from latent_drift import (
    NUM_LOG_CLASSES,
    DeterministicLatentODE,
    LogDataset,
    RaccoonLogClassifier,
    SyntheticTargetDataset,
    log_vocab_size,
    vocab_size,
)
from latent_drift.numerics.gradients import global_norm, gradients_of
from latent_drift.stability import DynamicLossScaler, StabilityMonitor, stable_training_step

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def ode_model(slices: int = 64) -> DeterministicLatentODE:
    """The latent ODE model at its published sizes."""
    torch.manual_seed(0)
    return DeterministicLatentODE(vocab_size, latent_size=64, hidden_size=128, embed_size=64, num_slices=slices)


def ode_data(rows: int) -> Tensor:
    """The first `rows` sequences, (rows, length)."""
    data = SyntheticTargetDataset(rows)
    return torch.stack([data[i] for i in range(rows)])


def ode_run(steps: int = 10_000, batch: int = 16, every: int = 1000) -> Iterator[dict[str, Any]]:
    """Training of the ODE model by `stable_training_step`: a record each `every` steps, about all the steps so far."""
    model, monitor = ode_model(), StabilityMonitor(raise_on_nan=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    data = ode_data(4096)
    skipped = clipped = 0
    largest = largest_after = 0.0
    recent: list[float] = []
    began = time.perf_counter()
    for step in range(1, steps + 1):
        rows = torch.randint(len(data), (batch,))
        result = stable_training_step(model, data[rows], None, optimizer, None, monitor=monitor, max_grad_norm=1.0)
        skipped, clipped = skipped + result["skipped"], clipped + result["grad_clipped"]
        largest = max(largest, result["grad_norm"])
        largest_after = max(largest_after, global_norm(gradients_of(model)))
        recent.append(result["loss"])
        if step % every == 0 or step == steps:
            yield {
                "step": step,
                "batch": batch,
                "mean_loss": round(sum(recent) / len(recent), 4),
                "nan": monitor.nan_count,
                "inf": monitor.inf_count,
                "skipped": skipped,
                "clipped": clipped,
                "largest_norm_before_clipping": round(largest, 4),
                "largest_norm_after_clipping": round(largest_after, 6),
                "parameters_finite": all(bool(p.isfinite().all()) for p in model.parameters()),
                "seconds": round(time.perf_counter() - began, 1),
            }
            recent.clear()


def accuracy_run(precision: str, steps: int = 1500) -> dict[str, Any]:
    """The log classifier trained in one precision (autocast, with a loss scaler for float16) and its accuracy on held-out messages."""
    dtype = PRECISIONS[precision]
    torch.manual_seed(0)
    model = RaccoonLogClassifier(log_vocab_size, NUM_LOG_CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = DynamicLossScaler(device="cpu") if dtype == torch.float16 else None
    data = LogDataset(4096)
    items = [data[i] for i in range(len(data))]
    tokens, labels = torch.stack([t for t, _ in items]), torch.as_tensor([int(c) for _, c in items])
    skipped, finite = 0, True
    for _ in range(steps):
        rows = torch.randint(3584, (32,))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            result = stable_training_step(model, tokens[rows], labels[rows], optimizer, None, scaler)
        skipped, finite = skipped + result["skipped"], finite and math.isfinite(result["loss"])
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        accuracy = float(model(tokens[3584:], labels[3584:])[1]["accuracy"])
    return {"precision": precision, "steps": steps, "accuracy": round(accuracy, 4), "losses_finite": finite, "skipped": skipped}


def batch_run(rows: int, steps: int = 30) -> dict[str, Any]:
    """A short training of the ODE model at one batch size."""
    model = ode_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = ode_data(max(1024, rows))
    losses, skipped, norm = [], 0, 0.0
    for _ in range(steps):
        result = stable_training_step(model, data[torch.randint(len(data), (rows,))], None, optimizer)
        losses.append(result["loss"])
        skipped, norm = skipped + result["skipped"], max(norm, result["grad_norm"])
    tenth = max(steps // 6, 1)
    return {
        "batch": rows,
        "steps": steps,
        "first_losses": round(sum(losses[:tenth]) / tenth, 4),
        "last_losses": round(sum(losses[-tenth:]) / tenth, 4),
        "skipped": skipped,
        "largest_norm_before_clipping": round(norm, 3),
        "parameters_finite": all(bool(p.isfinite().all()) for p in model.parameters()),
    }


def main() -> None:
    """Write the records of one kind of run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=["ode", "precision", "batches"])
    parser.add_argument("--steps", type=int, help="optimizer steps; the run's own number by default")
    arguments = parser.parse_args()
    steps = {} if arguments.steps is None else {"steps": arguments.steps}
    torch.set_num_threads(1)
    records: Iterator[dict[str, Any]]
    if arguments.run == "ode":
        records = ode_run(**steps)
    elif arguments.run == "precision":
        records = (accuracy_run(precision, **steps) for precision in PRECISIONS)
    else:
        records = (batch_run(rows, **steps) for rows in BATCH_SIZES)
    for record in records:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
