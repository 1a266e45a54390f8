"""Long runs at the published sizes, behind -m slow: minutes to an hour each on one core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sequences import synthetic_sequences
from latent_drift.models.train_ode import OdeStep
from tests.models.ode import recorded
from tests.models.ode.recorded import recorded_run
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


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_ten_thousand_steps_without_nan_or_inf(precision: str) -> None:
    records = recorded_run(precision, steps=10_000, batch=16)
    assert records[-1]["step"] == 10_000
    assert all(record["parameters_finite"] and record["losses_finite"] for record in records)
    assert records[-1]["skipped"] <= (20 if precision == "float16" else 0)  # a scaler finds its scale by overflowing
    rates = [record["well_formed_own_z0"] for record in records]
    assert rates[0] < 0.05
    assert rates[1] > 0.3
    assert sum(rates[-3:]) / 3 > 0.85
    assert records[-1]["noise"] == pytest.approx(1 / 16, abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", [1, 2, 4, 64, 256])
def test_batches_of_one_to_256_stay_finite(batch: int) -> None:
    records = recorded_run("float32", steps=200, batch=batch, every=100)
    assert all(record["parameters_finite"] and record["losses_finite"] for record in records)
    assert records[-1]["skipped"] == 0
