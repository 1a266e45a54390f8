"""Tiny runs in a project of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_drift.config import load
from latent_drift.training.checkpoint import read_checkpoint
from latent_drift.training.run import TrainingRun
from latent_drift.training.run_folder import RunFolder
from latent_drift.training.settings import GivenSettings, RunSettings
from latent_drift.training.tasks import TASKS
from tests.projects import project

__all__ = ["project"]  # a fixture of every test here

SIZES = {
    "ode": {"latent_size": 4, "hidden_size": 8, "embed_size": 4, "num_slices": 4},
    "raccoon": {"latent_dim": 4, "hidden_dim": 9, "embed_dim": 4},
}
DATA = {"ode": "synthetic:samples=50", "raccoon": "synthetic:samples=50"}
"""Fewer items than 20 steps of 6 take, so that runs begin their data anew."""


def tiny(kind: str, steps: int = 20, **given: Any) -> RunSettings:
    """The settings of a tiny run."""
    return TASKS[kind].settings(GivenSettings(SIZES[kind], **{"steps": steps, "batch_size": 6, "data": DATA[kind], "checkpoint_every": 1000} | given))


Start = Callable[..., TrainingRun]


@pytest.fixture
def start() -> Start:
    """Make a run, or one that goes on from a folder."""

    def of(settings: RunSettings, resume_from: Path | None = None, **more: Any) -> TrainingRun:
        checkpoint = None if resume_from is None else read_checkpoint(resume_from)
        config = more.pop("config", load() if checkpoint is None else checkpoint.config)
        return TrainingRun(settings, config, torch.device("cpu"), checkpoint=checkpoint, **more)

    return of


def folder(path: Path) -> RunFolder:
    """A folder for a run."""
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path)


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested data."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
