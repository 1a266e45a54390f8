"""The command itself: status, streams, the module form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import latent_drift.cli
from latent_drift import __version__
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]


def test_help_lists_the_commands(run: Run) -> None:
    outcome = run("--help")
    assert outcome.status == 0
    assert "config" in outcome.out


@pytest.mark.parametrize("group", [(), ("config",)])
def test_help_cuts_no_command_s_line_short(run: Run, group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "..." not in run(*group, "--help").out.replace("[ARGS]...", "")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (MemoryError("Unable to allocate 72.8 TiB"), "there is not enough memory (Unable to allocate 72.8 TiB); take smaller numbers"),
        (
            RuntimeError("[enforce fail at x.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12 (C)"),
            "there is not enough memory (can't allocate memory: you tried to allocate 9 bytes); take smaller numbers",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "there is not enough memory (CUDA out of memory."),
        (OSError(28, "No space left on device", "x"), "[Errno 28] No space left on device: 'x'"),
    ],
)
def test_what_the_machine_refuses_is_one_message_and_status_2(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, shown: str) -> None:
    def refused() -> None:
        raise error

    monkeypatch.setattr(latent_drift.cli, "app", refused)
    outcome = run("train")
    assert outcome.status == 2
    assert outcome.err.startswith(f"latent-drift: error: {shown}")


def test_another_error_is_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(latent_drift.cli, "app", wrong)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        latent_drift.cli.main()


def test_version(run: Run) -> None:
    assert run("--version").out == f"latent-drift {__version__}\n"


@pytest.mark.parametrize("arguments", [("nothing",), ("config", "nothing"), ("config", "show", "--nothing"), ("config", "diff", "1.0.0")])
def test_bad_usage_is_status_2_on_standard_error(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert "Usage:" in outcome.err


def test_an_error_of_ours_is_one_message_and_status_2(run: Run) -> None:
    outcome = run("config", "show", ">=99")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("latent-drift: error: argument: no stability config satisfies '>=99'. Available: 0.9.0")
    assert "Traceback" not in outcome.err


def test_the_module_form_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "latent_drift", "config", "list"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1.0.0" in done.stdout


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m latent_drift config explain 1.0.0 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.startswith("1.0.0")
    assert "Traceback" not in done.stderr
