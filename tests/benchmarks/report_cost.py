"""What a report costs while the run goes on: gradient norms by layer, and the folder that is kept up to date."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

import instrument
from instrument.layer_norms import LayerNorms
from instrument.report.journal import Journal
from tests.benchmarks.harness import Row, paired, quartiles
from tests.benchmarks.instrument_cost import AREA, SmallClassifier, training_step

STEPS = 1000
STEPS_OF_A_PAIR = 40


def _model() -> tuple[SmallClassifier, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return SmallClassifier(), torch.randint(0, 40, (32, 16)), torch.randint(0, 4, (32,))


def layers() -> Row:
    """The share of a thousand steps of the small classifier that goes into gradient norms by layer."""
    model, tokens, labels = _model()
    step = training_step(model, tokens, labels)
    optimizer = torch.optim.AdamW(model.parameters())
    shares = []
    for _ in range(15):
        step()
        began = time.process_time()
        for _ in range(10):
            step()
        plain = (time.process_time() - began) / 10
        norms = LayerNorms()
        began = time.process_time()
        for _ in range(STEPS):
            norms.see(optimizer, bad=False)
        shares.append(100.0 * (time.process_time() - began) / (STEPS * plain))
    low, middle, high = quartiles(shares)
    note = f"of {STEPS} steps, {len(norms.table().steps)} columns of {len(norms.table().names)} parameters"
    return Row(AREA, "gradient norms by layer", middle, low, high, len(shares), bar=0.5, unit="%", note=note)


def journal() -> Row:
    """A step of the small classifier, guarded, with the report's folder kept up to date and without."""
    model, tokens, labels = _model()
    step = training_step(model, tokens, labels)
    with tempfile.TemporaryDirectory() as folder, instrument.stable(profile="guard") as run:
        step()

        following = Journal(run, Path(folder))
        following.stop()

        def followed() -> None:
            stop = run.subscriptions.add(on_step=following.after_step)
            for _ in range(STEPS_OF_A_PAIR):
                step()
            stop()

        def alone() -> None:
            for _ in range(STEPS_OF_A_PAIR):
                step()

        return paired(AREA, "guarded step with --report against without", followed, alone, bar=1.02, pairs=9, repeats=1)


def rows() -> list[Row]:
    """Both."""
    return [layers(), journal()]
