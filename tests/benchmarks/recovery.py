"""What rollback costs: a training step with copies of the state being kept, one copy, one return, and their memory; the step guard's new parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

import instrument
from tests.benchmarks.harness import Row, paired, quartiles
from tests.benchmarks.instrument_cost import ConvNet, SmallClassifier, training_step

AREA = "recovery"


def _guarded(**recovery: Any) -> Callable[[], AbstractContextManager[object]]:
    return lambda: instrument.stable(profile="guard", recovery=recovery)


class _StepsOnly:
    """Two guarded blocks would cost one another's entry; here the second factor of the pair is guarded as well, without rollback."""

    def __init__(self, step: Callable[[], None], **recovery: Any) -> None:
        self._step = step
        self._recovery = recovery

    def __call__(self) -> None:
        with instrument.stable(profile="guard", recovery=self._recovery):
            for _ in range(20):
                self._step()


def _step_rows() -> list[Row]:
    torch.manual_seed(0)
    rows = []
    cases = [
        ("small classifier", SmallClassifier(), torch.randint(40, (16, 24)), torch.randint(4, (16,))),
        ("convolutional net", ConvNet(), torch.randn(8, 3, 32, 32), torch.randint(10, (8,))),
    ]
    for name, model, inputs, targets in cases:
        step = training_step(model, inputs, targets)
        for every in (1, 10, 100):
            kept = _StepsOnly(step, rollback=True, snapshot_every=every)
            row = paired(AREA, f"{name}: rollback, a copy every {every} steps, against guard", kept, _StepsOnly(step), pairs=9, repeats=1)
            rows.append(row)
    return rows


def _copy_rows() -> list[Row]:
    """One copy and one return of a model with 10 million parameters under AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(1000, 1000) for _ in range(10)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    inputs = torch.randn(4, 1000)
    rows = []
    with instrument.stable(profile="guard", recovery={"rollback": True, "snapshot_every": 1, "rollback_after": 1, "retries": 1000}) as run:

        def step(factor: float = 1.0) -> None:
            optimizer.zero_grad()
            model(inputs).mean().backward()
            if factor != 1.0:
                next(model.parameters()).grad.mul_(factor)  # type: ignore[union-attr]
            optimizer.step()

        rollback = run.recovery.rollback
        copies, returns = [], []
        for _ in range(10):
            before = rollback.seconds
            step()
            copies.append((rollback.seconds - before) * 1000.0)
            before = rollback.seconds
            step(float("nan"))
            returns.append((rollback.seconds - before) * 1000.0)
        for name, times in (("one copy", copies[2:]), ("one return", returns[2:])):
            low, middle, high = quartiles(times)
            rows.append(Row(AREA, f"{name}, 10,010,000 parameters with AdamW", middle, low, high, len(times), unit="ms"))
        held = sum(p.nbytes for p in model.parameters())
        mib = rollback.bytes / 2**20
        note = f"{rollback.bytes / held:.2f} times the parameters: they, and AdamW's two moments"
        rows.append(Row(AREA, "memory of the copy", mib, mib, mib, 1, unit="MiB", note=note))
    start = time.perf_counter()
    model.state_dict()
    rows.append(Row(AREA, "state_dict of the same model, for scale", *([(time.perf_counter() - start) * 1000.0] * 3), 1, unit="ms"))
    return rows


def rows() -> list[Row]:
    """Every row of this area."""
    return [*_copy_rows(), *_step_rows()]
