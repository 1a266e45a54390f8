"""What a checkpoint is, what is no checkpoint, and under which config one is used."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch

from latent_drift.config import load
from latent_drift.config.sources import ENVIRONMENT
from latent_drift.errors import UsageError
from latent_drift.training.checkpoint import read_checkpoint
from latent_drift.training.config_choice import choose
from latent_drift.training.metrics import MetricsFile, read_metrics
from latent_drift.training.random_state import random_state, restore_random_state, seed_everything
from latent_drift.training.run_folder import existing_folder, new_folder, write_whole
from latent_drift.training.settings import RunSettings
from latent_drift.training.trained_model import load_trained
from tests.training.conftest import Start, folder, same, tiny

CPU = torch.device("cpu")


@pytest.fixture
def made(start: Start, tmp_path: Path) -> Path:
    """The folder of a finished tiny run."""
    start(tiny("raccoon", 4, checkpoint_every=2), config=load(profile="strict")).train(folder(tmp_path / "run"))
    return tmp_path / "run"


def test_a_checkpoint_is_plain_data_and_carries_its_config(made: Path) -> None:
    content = torch.load(made / "checkpoint.pt", weights_only=True)
    config = load(profile="strict")
    assert content["config"]["version"] == config.version
    assert content["config"]["sha256"] == config.sha256
    assert content["config"]["profile"] == "strict"
    assert content["config"]["overrides"] == dict(config.overrides)
    checkpoint = read_checkpoint(made)
    assert (checkpoint.step, checkpoint.finished, checkpoint.config.values()) == (4, True, config.values())
    assert checkpoint.settings == tiny("raccoon", 4, checkpoint_every=2)
    described = json.loads((made / "run.json").read_text())
    assert described["config"]["sha256"] == config.sha256


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(made: Path) -> None:
    path = made / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-500])
    checkpoint = read_checkpoint(made)
    assert checkpoint.step == 2
    assert "checkpoint.pt: cannot be read" in str(checkpoint.note)
    assert "checkpoint.pt.previous, of step 2" in str(checkpoint.note)
    path.unlink()
    assert read_checkpoint(path).step == 2
    (made / "checkpoint.pt.previous").write_bytes(b"")
    path.write_bytes(b"\x80\x02nonsense")
    with pytest.raises(UsageError, match=r"is no checkpoint of latent-drift"):
        read_checkpoint(made)


class _Bomb:
    def __reduce__(self) -> object:
        return os.mkdir, ("executed",)


def test_what_is_no_checkpoint_is_refused_and_nothing_in_it_runs(made: Path, project: Path) -> None:
    (project / "text.pt").write_text("a log file\n")
    torch.save(torch.nn.Linear(2, 1).state_dict(), project / "state.pt")
    torch.save([1, 2], project / "list.pt")
    (project / "pickle.pt").write_bytes(pickle.dumps(_Bomb()))
    torch.save({"latent_drift_run": 1, "x": _Bomb()}, project / "zip.pt")
    (project / "nothing.pt").touch()
    (project / "cut.pt").write_bytes((made / "checkpoint.pt").read_bytes()[:5000])
    (project / "empty").mkdir()
    for name, message in {
        "text.pt": "is no checkpoint of latent-drift, or a damaged one: it is no file of torch.save",
        "nothing.pt": "it is empty",
        "cut.pt": "it was cut short or changed",
        "state.pt": r"it holds weight, bias, \.\.\.; for a bare state dict: model\.load_state_dict",
        "list.pt": "it holds something else",
        "pickle.pt": "pickled objects, which are never run",
        "zip.pt": "pickled objects, which are never run",
        "empty": r"is a folder without a checkpoint\.pt",
        "nowhere.pt": "there is no such checkpoint",
    }.items():
        with pytest.raises(UsageError, match=message):
            read_checkpoint(project / name)
    assert not (project / "executed").exists()


def test_another_kind_and_a_later_format_are_refused(made: Path, project: Path) -> None:
    with pytest.raises(UsageError, match=r"holds the model 'raccoon', 'ode' is needed"):
        read_checkpoint(made, "ode")
    content = torch.load(made / "checkpoint.pt", weights_only=True)
    for change, message in (
        ({"latent_drift_run": 99}, r"in format 99; this is .*Install the newer one"),
        ({"kind": "squirrel"}, r"holds a model 'squirrel'; this release knows ode and raccoon"),
        ({"settings": {**content["settings"], "colour": 1}}, r"the settings do not fit this release of latent-drift \(colour\)"),
        ({"latent_drift_run": "one"}, r"its format is 'one'"),
        ({"settings": 7, "random": None}, r"lacks what a run needs, or holds it in another kind: settings, random"),
        ({"settings": {**content["settings"], "steps": "many"}}, r"its settings are damaged"),
        ({"model": {}}, r"weights do not fit a model of the sizes it states: Missing key"),
        ({"model": {**content["model"], "z0_mean": content["model"]["z0_mean"] * math.nan}}, r"1 of its weights are not finite, z0_mean"),
        (
            {"settings": {**content["settings"], "sizes": {**content["settings"]["sizes"], "latent_dim": 5}}},
            r"weights do not fit a model of the sizes",
        ),
    ):
        torch.save(content | change, project / "changed.pt")
        with pytest.raises(UsageError, match=message) as caught:
            load_trained(project / "changed.pt", None, CPU)
        assert len(str(caught.value)) < 700  # not a screen of keys


def test_the_checkpoint_s_own_config_rules_unless_somebody_asks(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = read_checkpoint(made).config
    assert choose(saved, None).config == saved
    assert choose(saved, "checkpoint").config == saved
    same_values = choose(load("1.0.0"), "~=1.0")
    assert same_values.note is None
    with pytest.raises(UsageError, match=r"fields differ:\n(.*\n)*--config 0\.9\.0 asks for other numerics .*--config checkpoint .*--change-config"):
        choose(saved, "0.9.0")
    changed = choose(saved, "0.9.0", change=True)
    assert changed.config == load("0.9.0")
    assert "amp.init_scale: 1024.0 -> 65536.0" in str(changed.note)
    monkeypatch.setenv(ENVIRONMENT, "0.9.0")
    with pytest.raises(UsageError, match=r"the project's pin \(LATENT_DRIFT_CONFIG or pyproject.toml\) asks for other numerics"):
        choose(saved, None)
    assert choose(saved, "checkpoint").config == saved


def test_a_model_is_loaded_as_it_was_trained(made: Path, start: Start) -> None:
    trained = load_trained(made, "raccoon", CPU)
    assert not trained.model.training
    run = start(tiny("raccoon", 4, checkpoint_every=2), made)
    assert same(dict(trained.model.state_dict()), dict(run.model.state_dict()))
    assert trained.notes == ()
    assert len(load_trained(made, None, CPU, "0.9.0", change_config=True).notes) == 1


def test_random_states_return_from_plain_data(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [float(torch.rand(())), random.gauss(0, 1), float(np.random.standard_normal()), float(np.random.random())]

    seed_everything(7)
    draw()
    torch.save(random_state(), tmp_path / "state.pt")
    ahead = [draw() for _ in range(3)]
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw() for _ in range(3)] == ahead
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first


def test_settings_return_from_plain_data() -> None:
    settings = tiny("ode", optimizer="SGD", optimizer_arguments={"momentum": 0.9}, loss_weights=(1.0, 2.0, 3.0))
    assert RunSettings.from_document(json.loads(json.dumps(settings.document()))) == settings
    with pytest.raises(UsageError, match=r"--steps must be at least 0; got -1; --batch-size must be at least 1; got 0; --seed must be from 0"):
        tiny("ode", steps=-1, batch_size=0, seed=-1)


def test_metrics_are_cut_where_the_checkpoint_stands(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in range(4):
        assert file.append({"step": step, "loss": float("nan") if step == 1 else 0.5, "skipped": step == 1}) is None
    file.close()
    assert read_metrics(path)[1] == {"step": 1, "loss": None, "skipped": True}
    whole = path.read_bytes()
    MetricsFile(path, 2).close()
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    with pytest.raises(UsageError, match=r"has no record of step 2, although the checkpoint is of step 3"):
        MetricsFile(path, 3)
    assert path.read_bytes().count(b"\n") == 2  # refused, not cut
    path.write_bytes(whole[:-3])
    assert len(read_metrics(path)) == 3
    path.write_bytes(b"{}\nx\n")
    with pytest.raises(UsageError, match=r"metrics.jsonl, line 2: is no record"):
        read_metrics(path)


def test_folders_are_new_or_hold_a_run(project: Path, made: Path) -> None:
    assert [new_folder(None, "ode").path.name for _ in range(3)] == ["ode-1", "ode-2", "ode-3"]
    assert new_folder(project / "a" / "b", "ode").path.is_dir()
    (project / "file").write_text("")
    (project / "full").mkdir()
    (project / "full" / "thesis.tex").write_text("")
    for out, message in (
        (project / "file", "is a file"),
        (project / "full", "is not empty and holds no run"),
        (made, r"holds a run already \(raccoon, 4 steps, seed 0\)\. Give another folder, or --resume"),
        (project / "file" / "x", r"cannot be made: Not a directory"),
    ):
        with pytest.raises(UsageError, match=message):
            new_folder(out, "ode")
    for existing, message in ((None, "add --out"), (project / "no", "there is no such folder"), (project / "full", r"holds no checkpoint\.pt")):
        with pytest.raises(UsageError, match=message):
            existing_folder(existing)
    assert existing_folder(made).checkpoint == made / "checkpoint.pt"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x"
    write_whole(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(target, b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir() if path.is_file() and path.name != "pyproject.toml"] == [("x", b"old")]
