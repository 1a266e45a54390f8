"""Figures of a model and pictures of a run: what they say is what the run did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.models.alphabet import decode
from latent_drift.models.sequences import synthetic_sequences
from latent_drift.training.evaluation import evaluate
from latent_drift.training.metrics import read_metrics
from latent_drift.training.run import Record
from latent_drift.training.samples import draw_sequences, is_well_formed
from latent_drift.training.tasks import TASKS
from tests.models.ode import well_formed as reference
from tests.training.conftest import Start, folder, same, tiny

CPU = torch.device("cpu")


def test_well_formed_is_what_the_data_could_have_produced() -> None:
    """Against the verdict of tests/models, which was written otherwise."""
    generator = torch.Generator().manual_seed(0)
    good = [decode(row) for row in synthetic_sequences(300, generator).long()]
    assert all(map(is_well_formed, good))
    broken = []
    for text in good:
        place = int(torch.randint(67, (), generator=generator))
        broken.append(text[:place] + "_A!>?Q"[int(torch.randint(6, (), generator=generator))] + text[place + 1 :])
    verdicts = [is_well_formed(text) for text in broken]
    assert verdicts == [reference.is_well_formed(text) for text in broken]
    assert 20 < sum(verdicts) < 280
    for text in ("", "?", "?A>", "?a>" + "_" * 64, "?A>" + "_" * 64, "?A>" + "!" * 64, good[0][:-1], good[0] + "_"):
        assert is_well_formed(text) == reference.is_well_formed(text), text


def test_drawing_does_not_disturb_the_run_s_random_numbers(start: Start) -> None:
    model: Any = start(tiny("ode")).model
    torch.manual_seed(1)
    ahead = torch.rand(3)
    torch.manual_seed(1)
    drawn = list(draw_sequences(model, 2, 9, seed=5))
    assert torch.equal(torch.rand(3), ahead)
    assert drawn == list(draw_sequences(model, 2, 9, seed=5)) != list(draw_sequences(model, 2, 9, seed=6))
    assert len(set(draw_sequences(model, 3, 9, seed=5, shared=True))) > 1


def test_nothing_cannot_be_evaluated(start: Start) -> None:
    from latent_drift.training.data import open_data

    with pytest.raises(UsageError, match="nothing can be evaluated"):
        evaluate("raccoon", start(tiny("raccoon")).model, open_data("raccoon", "synthetic:samples=0", 0), CPU)


@pytest.mark.parametrize("kind", ["ode", "raccoon"])
def test_plots_show_the_metrics(start: Start, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    from latent_drift.training.plots import gradient_figure, loss_figure, plot_run

    settings = tiny(kind, 12)
    run = start(settings)
    run.train(folder(tmp_path / "run"))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    paths = plot_run(tmp_path / "run", run.model, settings, CPU)
    assert [path.name for path in paths] == ["loss.png", "gradient_norm.png", "latents.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in paths)
    assert run.model.training
    assert same(before, dict(run.model.state_dict()))  # looking changes nothing, the seed of the slices included
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    panels = loss_figure(records, TASKS[kind].parts).axes
    assert [axis.get_ylabel() for axis in panels] == ["loss", *TASKS[kind].parts]
    for axis in panels:
        assert list(axis.lines[0].get_ydata()) == [record[axis.get_ylabel()] for record in records]
    upper, lower = gradient_figure(records).axes
    assert list(upper.lines[0].get_ydata()) == [record["grad_norm"] for record in records]
    assert list(lower.lines[0].get_ydata()) == [record["lr"] for record in records]


def test_skipped_steps_and_missing_values_can_be_plotted() -> None:
    pytest.importorskip("matplotlib")
    from latent_drift.training.plots import gradient_figure, loss_figure

    def record(step: int, bad: bool) -> Record:
        value = None if bad else 1.0 + step
        return {"step": step, "loss": value, "grad_norm": value, "lr": None, "clipped": True, "skipped": bad}

    records = [record(step, bad=step == 2) for step in range(5)]
    assert list(loss_figure(records, ()).axes[0].lines[0].get_xdata()) == [0, 1, 3, 4]
    upper, _ = gradient_figure(records).axes
    assert upper.get_title(loc="left") == "5 of 5 steps clipped, 1 skipped (red)"
    assert loss_figure([], ()).axes


@pytest.mark.parametrize(("steps", "lines", "opacity"), [(1, 1, None), (40, 1, None), (99, 1, None), (100, 2, 0.35), (1000, 2, 0.35)])
def test_the_values_are_faint_only_behind_their_running_mean(steps: int, lines: int, opacity: float | None) -> None:
    pytest.importorskip("matplotlib")
    from latent_drift.training.plots import loss_figure

    axis = loss_figure([{"step": step, "loss": 1.0 + step % 3} for step in range(steps)], ()).axes[0]
    assert len(axis.lines) == lines
    assert axis.lines[0].get_alpha() == opacity
    assert axis.lines[0].get_marker() == ("o" if steps <= 40 else "" if lines == 1 else "None")
    assert all(tick == int(tick) for tick in axis.get_xticks())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_default_runs_reach_what_they_are_said_to(start: Start, tmp_path: Path, record_property: Any) -> None:
    """The classifier's default run, and half of the latent ODE's, from settings alone."""
    from latent_drift.training.data import open_data
    from latent_drift.training.settings import HELD_OUT, GivenSettings

    found = {}
    for kind, steps in (("raccoon", None), ("ode", 1500)):
        settings = TASKS[kind].settings(GivenSettings({}, steps=steps))
        run = start(settings)
        assert run.train(folder(tmp_path / kind)).finished
        found[kind] = evaluate(kind, run.model, open_data(kind, "synthetic", HELD_OUT, 4000 if kind == "raccoon" else 256), CPU)
    record_property("figures", json.dumps(found))
    assert found["raccoon"]["accuracy"] > 0.99
    assert found["ode"]["well_formed"] > 0.5
    assert found["ode"]["recon"] < 0.4
