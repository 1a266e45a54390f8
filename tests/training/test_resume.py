"""A run that was left and continued is bit for bit the run that was not left."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_drift.config import load
from latent_drift.errors import GiveUpError, UsageError
from latent_drift.training import optimizers, schedules
from latent_drift.training.checkpoint import read_checkpoint
from latent_drift.training.metrics import read_metrics
from latent_drift.training.run import Record, TrainingRun
from tests.training.conftest import Start, folder, same, tiny

KINDS = ("ode", "raccoon")

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "warmup-cosine": {},
    "ConstantLR": {"total_iters": 13},
    "CosineAnnealingLR": {},
    "CosineAnnealingWarmRestarts": {"T_0": 7},
    "CyclicLR": {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 6},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"total_iters": 15},
    "MultiStepLR": {"milestones": [5, 12]},
    "OneCycleLR": {},
    "PolynomialLR": {},
    "ReduceLROnPlateau": {"patience": 1, "threshold": 0.5},
    "StepLR": {"step_size": 4},
}


def both_ways(start: Start, where: Path, kind: str, steps: int = 20, left_at: int = 10, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last checkpoint and the metrics of a run in one go, and of one that was left and continued."""
    config = given.pop("config", load())
    settings = tiny(kind, steps, **given)
    found = []
    for name, stops in (("whole", ()), ("parts", (left_at,))):
        path = where / name
        run = start(settings, config=config)
        for stop in stops:
            assert run.train(folder(path), stop).step == stop
            run = start(settings, path)
        assert run.train(folder(path)).finished
        found.append(dict(read_checkpoint(path).content) | {"metrics": (path / "metrics.jsonl").read_bytes()})
    return found[0], found[1]


def assert_same(whole: dict[str, Any], parts: dict[str, Any]) -> None:
    assert set(whole) == set(parts) >= {"model", "optimizer", "optimizer_step", "schedule", "random", "metrics", "step"}
    assert {name for name in whole if not same(whole[name], parts[name])} == set()
    assert whole["metrics"].count(b"\n") == whole["step"]


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        *(("raccoon", name) for name in SCHEDULES),
        *(pytest.param("ode", name, marks=() if name in ("constant", "OneCycleLR") else pytest.mark.slow) for name in SCHEDULES),
    ],
)
def test_twenty_steps_are_ten_and_ten_more(start: Start, tmp_path: Path, kind: str, scheduler: str) -> None:
    whole, parts = both_ways(start, tmp_path, kind, scheduler=scheduler, scheduler_arguments=SCHEDULES[scheduler])
    assert_same(whole, parts)


def test_every_schedule_that_is_offered_is_tested() -> None:
    assert list(SCHEDULES) == schedules.names()


@pytest.mark.parametrize("name", optimizers.catalogue())
def test_every_optimizer_continues(start: Start, tmp_path: Path, name: str) -> None:
    optimizers.quieten()
    whole, parts = both_ways(start, tmp_path, "raccoon", steps=4, left_at=2, optimizer=name, optimizer_arguments={}, scheduler="constant")
    assert_same(whole, parts)
    untouched = start(tiny("raccoon")).model.state_dict()
    assert not same(whole["model"], dict(untouched)), "the optimizer did nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_other_precisions_continue_with_their_loss_scale(start: Start, tmp_path: Path, kind: str, precision: str) -> None:
    config = load(amp={"growth_interval": 4})  # so that the scale moves within the run
    steps, left_at = (10, 6) if kind == "ode" else (20, 10)
    whole, parts = both_ways(start, tmp_path, kind, steps, left_at, precision=precision, config=config)
    assert_same(whole, parts)
    if precision == "float16":
        assert whole["optimizer_step"]["scaler"]["scale"] != config.amp.init_scale


@pytest.mark.parametrize(
    "clip", [{"kind": "adaptive_percentile", "percentile": 50.0, "warmup": 3}, {"kind": "zscore", "threshold": 0.1, "warmup": 3}]
)
def test_clipping_by_history_continues_with_its_history(start: Start, tmp_path: Path, clip: dict[str, Any]) -> None:
    whole, parts = both_ways(start, tmp_path, "raccoon", config=load(gradient={"clip": clip}))
    assert_same(whole, parts)
    assert len(whole["optimizer_step"]["history"]["norms"]) == 20


@pytest.mark.parametrize("part", ["optimizer", "schedule", "random", "optimizer_step"])
def test_the_comparison_can_fail_without_any_one_part(start: Start, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a resume that forgets one part of the state is told from the run in one go."""
    fresh = start(tiny("raccoon", precision="float16"), config=load(amp={"growth_interval": 4}))
    forget: dict[str, Callable[[], None]] = {
        "optimizer": lambda: monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None),
        "schedule": lambda: monkeypatch.setattr(schedules.Schedule, "load_state_dict", lambda self, state: None),
        "random": lambda: monkeypatch.setattr("latent_drift.training.run.restore_random_state", lambda state: None),
        "optimizer_step": lambda: monkeypatch.setattr(type(fresh._optimizer_step), "load_state_dict", lambda self, state: None),
    }
    forget[part]()
    whole, parts = both_ways(start, tmp_path, "raccoon", precision="float16", config=load(amp={"growth_interval": 4}))
    assert not all(same(whole[name], parts[name]) for name in whole)


def test_a_killed_run_writes_the_steps_behind_its_checkpoint_again(start: Start, tmp_path: Path) -> None:
    settings = tiny("raccoon", checkpoint_every=8)
    assert start(settings).train(folder(tmp_path / "whole")).finished

    class Killed(BaseException):
        pass

    def kill(record: Record) -> None:
        if record["step"] == 13:
            raise Killed

    with pytest.raises(Killed):
        start(settings, on_step=kill).train(folder(tmp_path / "killed"))
    metrics = tmp_path / "killed" / "metrics.jsonl"
    assert metrics.read_bytes().count(b"\n") == 14
    with metrics.open("ab") as file:
        file.write(b'{"step": 14, "lo')  # as a machine that lost its power leaves it
    assert read_checkpoint(tmp_path / "killed").step == 8
    assert start(settings, tmp_path / "killed").train(folder(tmp_path / "killed")).finished
    assert metrics.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert same(dict(read_checkpoint(tmp_path / "whole").content), dict(read_checkpoint(tmp_path / "killed").content))


@pytest.fixture
def hearing() -> Iterator[None]:
    """Signals as a process in the foreground has them; one in the background ignores Ctrl-C."""
    before = {number: signal.signal(number, handler) for number, handler in FOREGROUND.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


FOREGROUND = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}


@pytest.mark.parametrize("number", FOREGROUND)
@pytest.mark.usefixtures("hearing")
def test_a_signal_ends_the_run_behind_its_step_with_a_checkpoint(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    settings = tiny("raccoon")
    before = signal.getsignal(number)

    def press(record: Record) -> None:
        if record["step"] == 6:
            signal.raise_signal(number)

    end = start(settings, on_step=press).train(folder(tmp_path / "left"))
    assert (end.finished, end.signal) == (False, number)
    assert read_checkpoint(tmp_path / "left").step == end.step == 8  # the step under way was the eighth
    assert signal.getsignal(number) is before
    start(settings, tmp_path / "left").train(folder(tmp_path / "left"))
    start(settings).train(folder(tmp_path / "whole"))
    assert same(dict(read_checkpoint(tmp_path / "whole").content), dict(read_checkpoint(tmp_path / "left").content))


@pytest.mark.usefixtures("hearing")
def test_what_was_ignored_stays_ignored(start: Start) -> None:
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert start(tiny("raccoon", 3), on_step=lambda record: signal.raise_signal(signal.SIGHUP)).train(None).finished
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_run_that_gives_up_keeps_what_it_has(start: Start, tmp_path: Path) -> None:
    run = start(tiny("raccoon", 40), config=load(gradient={"max_consecutive_skips": 3}))
    calls = iter(range(100))
    run.model.enc_mean.register_forward_hook(lambda module, inputs, output: output * float("nan") if next(calls) > 4 else None)  # type: ignore[union-attr, operator]
    with pytest.raises(GiveUpError, match="4 steps in a row"):
        run.train(folder(tmp_path / "run"))
    assert read_checkpoint(tmp_path / "run").step == 0
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["skipped"] for record in records] == [False] * 5 + [True] * 3
    assert records[-1]["loss"] is None


def test_two_processes_cannot_write_one_run(start: Start, tmp_path: Path) -> None:
    def second(record: Record) -> None:
        with pytest.raises(UsageError, match="another process is writing this run"):
            start(tiny("raccoon", 3)).train(folder(tmp_path / "run"))

    start(tiny("raccoon", 1), on_step=second).train(folder(tmp_path / "run"))
    assert start(tiny("raccoon", 3, scheduler="constant"), tmp_path / "run").train(folder(tmp_path / "run")).finished


@pytest.mark.usefixtures("hearing")
def test_a_second_ctrl_c_does_not_wait(start: Start, tmp_path: Path) -> None:
    def press(record: Record) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        start(tiny("raccoon"), on_step=press).train(folder(tmp_path / "run"))
    assert read_checkpoint(tmp_path / "run").step == 0


@pytest.mark.parametrize("kind", KINDS)
def test_more_steps_extend_a_run_whose_schedule_has_no_end(start: Start, tmp_path: Path, kind: str) -> None:
    assert start(tiny(kind, 4, scheduler="constant")).train(folder(tmp_path / "parts")).finished
    assert start(tiny(kind, 9, scheduler="constant"), tmp_path / "parts").train(folder(tmp_path / "parts")).finished
    assert start(tiny(kind, 9, scheduler="constant")).train(folder(tmp_path / "whole")).finished
    assert same(dict(read_checkpoint(tmp_path / "whole").content), dict(read_checkpoint(tmp_path / "parts").content))


def test_training_does_not_depend_on_being_watched(start: Start, tmp_path: Path) -> None:
    """Checkpoints in between change nothing."""
    seldom = start(tiny("raccoon", 10))
    seldom.train(None)
    often = start(tiny("raccoon", 10, checkpoint_every=1))
    often.train(folder(tmp_path / "often"))
    assert same(dict(often.model.state_dict()), dict(seldom.model.state_dict()))


def test_the_ode_is_trained_as_train_ode_does(start: Start) -> None:
    """The loop is that of the library's own training function, on the same batches."""
    from latent_drift.models.train_ode import train_ode
    from latent_drift.training.batches import Batches
    from latent_drift.training.data import open_data

    settings = tiny("ode", 10)
    records: list[Record] = []
    run: TrainingRun = start(settings, on_step=records.append)
    other = start(settings)
    run.train(None)
    batches = Batches(open_data("ode", settings.data, settings.seed), settings.batch_size, settings.seed)
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=1e-3, weight_decay=1e-5)
    training = train_ode(other.model, [batches.at(step) for step in range(10)], 10, optimizer=optimizer, sample_every=0)  # type: ignore[arg-type]
    assert [record.loss for record in training.steps] == [record["loss"] for record in records]
    assert same(dict(run.model.state_dict()), dict(other.model.state_dict()))
