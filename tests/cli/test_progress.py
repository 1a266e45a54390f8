"""The progress display, with a terminal and without."""

from __future__ import annotations

import io
from typing import Any

import pytest

from latent_drift.cli import progress
from latent_drift.cli.progress import RunProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(step: int, **changed: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "accuracy": 0.5, "grad_norm": 0.25, "lr": 1e-3, "clipped": False, "skipped": False} | changed


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, steps: int = 10, quiet: bool = False, columns: str = "100", **changed: Any) -> str:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": columns}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stderr", stream)
    with RunProgress(steps, 0, "accuracy", quiet) as display:
        for step in range(steps):
            display.step(record(step, **changed))
            if changed.get("skipped"):
                display.note(f"step {step} skipped: loss nan")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("columns", "present", "absent"),
    [
        ("120", ["10/10", "loss 1.0000  accuracy 0.500  |g| 0.25  lr 1.0e-03"], []),
        ("60", ["10/10", "loss 1.0000  accuracy 0.500"], ["lr "]),
        ("40", ["10/10", "loss 1.0000"], ["accuracy", "lr "]),
    ],
)
def test_a_terminal_has_a_bar_with_the_figures_that_fit(monkeypatch: pytest.MonkeyPatch, columns: str, present: list[str], absent: list[str]) -> None:
    text = shown(monkeypatch, Terminal(), columns=columns)
    assert "━" in text
    assert all(part in text for part in present)
    assert not any(part in text for part in absent)
    assert "…" not in text  # nothing is cut


def test_without_a_terminal_there_are_lines_and_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert len(lines) == 2  # the first step and the last; between them one in half a minute
    assert lines[-1].startswith("step 10/10  loss 1.0000  accuracy 0.500  |g| 0.25  lr 1.0e-03  ")
    assert lines[-1].endswith(" steps/s")
    assert not any("\x1b" in line or "━" in line for line in lines)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert len(shown(monkeypatch, io.StringIO()).splitlines()) == 10


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_shows_nothing_but_notes(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]) -> None:
    assert shown(monkeypatch, stream(), quiet=True) == ""
    assert "step 0 skipped" in shown(monkeypatch, stream(), quiet=True, skipped=True)


def test_a_few_skipped_steps_are_told_and_the_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, io.StringIO(), steps=50, skipped=True, loss=float("nan"))
    assert text.count("skipped: loss nan") == progress.MOST_SKIPS_SHOWN - 1
    assert text.count("only counted") == 1
    assert "50 skipped" in text


def test_the_loss_is_smoothed_over_steps_and_passes_over_what_is_not_finite() -> None:
    value = progress._smoothed(float("nan"), 2.0)
    assert value == 2.0
    assert progress._smoothed(value, float("inf")) == 2.0
    assert progress._smoothed(value, 1.0) == pytest.approx(2.0 - progress.SMOOTHING)
