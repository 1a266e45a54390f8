"""Commands run in an empty project of their own, with no pin from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

import latent_drift.cli
from tests.projects import project

__all__ = ["project"]  # a fixture of every test here


@dataclass(frozen=True)
class Outcome:
    """What a command line left behind."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `latent-drift` with arguments in this process."""

    def of(*arguments: str) -> Outcome:
        monkeypatch.setattr("sys.argv", ["latent-drift", *arguments])
        with pytest.raises(SystemExit) as left:
            latent_drift.cli.main()
        captured = capsys.readouterr()
        status = left.value.code
        return Outcome(status if isinstance(status, int) else 0 if status is None else 1, captured.out, captured.err)

    return of
