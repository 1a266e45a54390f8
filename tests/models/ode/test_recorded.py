"""Long runs at the published sizes: what was recorded of them is whole and without fault; behind -m slow they are taken again."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sequences import synthetic_sequences
from latent_drift.models.train_ode import OdeStep
from tests.models.ode import recorded
from tests.models.ode.recorded import RECORDED, RUNS, faults, read_records, recorded_run
from tests.models.ode.well_formed import is_well_formed, noise_rate, well_formed_rate


def test_verdicts_on_sequences_made_by_hand() -> None:
    line = "_" * 20 + "Q" * 8 + "_" * 36
    assert is_well_formed("?Q>" + line)
    assert is_well_formed("?Q>" + "!" + line[1:21] + "!" + line[22:])
    assert is_well_formed("?Q>" + "_" * 56 + "!QQQQQQ!")
    for bad in (
        "?R>" + line,
        "Q?>" + line,
        "?Q>" + line[:-1],
        "?Q>" + "_" * 64,
        "?Q>Q" + line[1:],
        "?Q>" + line.replace("Q", "_", 1),
        "?Q>R" + line[1:],
    ):
        assert not is_well_formed(bad), bad
    data = synthetic_sequences(500).long()
    assert well_formed_rate(data) == 1.0
    assert noise_rate(data) == pytest.approx(1 / 16, abs=0.01)


def test_a_record_says_when_something_was_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the long runs below: a weight that is Inf after the second step is in every later record."""
    from latent_drift.models import train_ode as module

    def spoiling(model: DeterministicLatentODE, loader: Any, n_iter: int, *, on_step: Callable[[OdeStep], None], **keywords: Any) -> Any:
        def spoil(step: OdeStep) -> None:
            if step.step == 1:
                with torch.no_grad():
                    model.predictor.net[0].bias[0] = torch.inf  # no sample depends on it
            on_step(step)

        return module.train_ode(model, loader, n_iter, on_step=spoil, **keywords)

    monkeypatch.setattr(recorded, "train_ode", spoiling)
    seen: list[dict[str, Any]] = []
    records = recorded.recorded_run("float32", steps=3, batch=1, num_slices=4, every=1, samples=4, report=seen.append)
    assert seen == records
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    assert [record["parameters_finite"] for record in records] == [True, True, False, False]
    assert records[1]["recon"] > 2.0
    assert records[0]["well_formed_own_z0"] == 0.0


def test_recorded_runs_are_there() -> None:
    names = {path.stem for path in RECORDED.glob("*.jsonl")}
    assert names >= {"b1", "b4", "b64", "b256", "bf16", "fp16", "fp32"}
    assert names <= set(RUNS)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDED.glob("*.jsonl")))
def test_a_recorded_run_is_whole_and_without_fault(name: str) -> None:
    assert faults(read_records(name), RUNS[name]) == []


@pytest.mark.parametrize(
    ("line", "change", "named"),
    [
        (-1, {"losses_finite": False}, "losses_finite"),
        (3, {"parameters_finite": False}, "parameters_finite"),
        (5, {"skipped": 1}, "skipped"),
        (2, {"recon": math.nan}, "recon"),
        (2, {"largest_gradient_norm": math.inf}, "largest_gradient_norm"),
        (4, {"step": 4001}, "step"),
        (1, {"precision": "float32"}, "precision"),
        (1, {"batch": 8}, "batch"),
        (1, {"seed": 3}, "seed"),
        (-1, {"well_formed_own_z0": 0.1}, "well-formed"),
        (-1, {"noise": 0.2}, "noise"),
        (-1, {"recon": 3.4}, "recon"),
        (7, {"cpu_seconds": 1.0}, "cpu_seconds"),
    ],
)
def test_a_faulty_record_is_named(line: int, change: dict[str, Any], named: str) -> None:
    records = copy.deepcopy(read_records("fp16"))
    records[line].update(change)
    assert any(named in fault for fault in faults(records, RUNS["fp16"]))


def test_a_run_that_stopped_early_is_named() -> None:
    records = read_records("fp16")
    assert any("step" in fault for fault in faults(records[:-1], RUNS["fp16"]))
    assert faults([], RUNS["fp16"]) == ["no record"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_taken_again_is_without_fault(name: str) -> None:
    """CPU time on one core: fp32, bf16 and fp16 a quarter of an hour each, b1, b2 and b4 four to six minutes, b64 six, b256 ten.

    `python -m tests.models.ode.recorded --name fp16 > tests/models/ode/recorded/fp16.jsonl` records one.
    """
    run = RUNS[name]
    assert faults(recorded_run(run.precision, run.steps, run.batch, every=run.every), run) == []
