"""Scripts with nothing wrong print the same bytes guarded as plain, and not one event is logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "scripts" / "healthy"
SCRIPTS = sorted(FOLDER.glob("*.py"))
ROOT = Path(__file__).parents[3]
NEVER_REACHED = {"clip": {"kind": "norm", "max_norm": 1e9}}

Results = dict[str, dict[str, Any]]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def _run_all(folder: Path, setting: str) -> Results:
    result = folder / "result.json"
    command = [sys.executable, "-m", "tests.instrument.no_harm.script_runs", str(result), setting, *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found: Results = json.loads(result.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each script prints without us."""
    return _run_all(tmp_path_factory.mktemp("plain"), "plain")


def _changed(plain: Results, guarded: Results) -> list[str]:
    return [name for name in plain if plain[name]["printed"] != guarded[name]["printed"]]


def test_there_are_scripts_of_every_kind() -> None:
    assert len(SCRIPTS) >= 20


@pytest.mark.xdist_group("healthy scripts")
@pytest.mark.parametrize("profile", ["guard", "observe"])
def test_healthy_scripts_print_the_same_bytes_and_log_nothing(profile: str, plain: Results, tmp_path: Path, record_figures: Any) -> None:
    guarded = _run_all(tmp_path, json.dumps({"profile": profile}))
    events = {name: found["events"] for name, found in guarded.items() if found["events"]}
    record_figures(
        f"healthy scripts, {profile}", scripts=len(guarded), events=sum(map(len, events.values())), differing=len(_changed(plain, guarded))
    )
    assert [name for name, found in guarded.items() if found["status"] != 0] == []
    assert events == {}
    assert _changed(plain, guarded) == []
    assert all(len(found["printed"].splitlines()) > 5 for found in guarded.values())
    # The guards were there: they counted each script's steps.
    assert [name for name, found in guarded.items() if found["steps"] == 0] == []


@pytest.mark.xdist_group("healthy scripts")
def test_under_train_a_threshold_that_is_never_reached_changes_nothing(plain: Results, tmp_path: Path, record_figures: Any) -> None:
    guarded = _run_all(tmp_path, json.dumps({"profile": "train", "gradient": NEVER_REACHED}))
    events = {name: found["events"] for name, found in guarded.items() if found["events"]}
    record_figures("healthy scripts, train without clipping", scripts=len(guarded), events=len(events), differing=len(_changed(plain, guarded)))
    assert events == {}
    assert _changed(plain, guarded) == []


@pytest.mark.xdist_group("healthy scripts")
def test_under_train_only_logged_clips_make_a_difference(plain: Results, tmp_path: Path, record_figures: Any) -> None:
    guarded = _run_all(tmp_path, json.dumps({"profile": "train"}))
    clipped = {name for name, found in guarded.items() if any(event[1] == "clipped" for event in found["events"])}
    # A clip may be followed by the name of what made the gradient large: an observation under the same code.
    others = {name: found["events"] for name, found in guarded.items() if any(event[0] != "NS507" for event in found["events"])}
    record_figures(
        "healthy scripts, train", scripts=len(guarded), clipped=len(clipped), other_events=len(others), differing=len(_changed(plain, guarded))
    )
    assert others == {}
    assert clipped, "none of the scripts was clipped, so this shows nothing"
    assert set(_changed(plain, guarded)) <= clipped


def _command_line(script: Path, *runner: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *runner, str(script)]
    return subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=120)


def _check_command_line(script: Path, plain: Results) -> None:
    done = _command_line(script, "-m", "instrument", "run", "--config", "1.0.0", "--profile", "guard", "--fail-on-event", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == plain[script.name]["printed"]


@pytest.mark.xdist_group("healthy scripts")
def test_the_command_line_gives_what_the_runs_in_one_process_gave(plain: Results) -> None:
    _check_command_line(FOLDER / "vae.py", plain)


@pytest.mark.slow
@pytest.mark.xdist_group("healthy scripts")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_by_the_command_line(script: Path, plain: Results) -> None:
    assert _command_line(script).stdout == plain[script.name]["printed"]
    _check_command_line(script, plain)
