"""An empty project to work in, for tests of what a pin in the surroundings would change."""

from __future__ import annotations

from pathlib import Path

import pytest

from latent_drift.config.sources import ENVIRONMENT


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: below a bare pyproject.toml, which ends the walk upward."""
    (tmp_path / "pyproject.toml").write_text("")
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return directory
