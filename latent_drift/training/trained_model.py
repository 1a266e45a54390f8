"""A model from a checkpoint, ready for use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from latent_drift.training.checkpoint import Checkpoint, load_model, read_checkpoint
from latent_drift.training.config_choice import choose
from latent_drift.training.tasks import TASKS


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model in evaluation mode, the checkpoint it comes from, and what its user should be told."""

    model: nn.Module
    checkpoint: Checkpoint
    notes: tuple[str, ...]


def load_trained(given: str | Path, kind: str | None, device: torch.device, pin: str | None = None, *, change_config: bool = False) -> TrainedModel:
    """The model that a checkpoint, or the folder of a run, holds.

    Args:
        given: the path.
        kind: "ode" or "raccoon" where only that will do.
        device: where to put it.
        pin, change_config: as for `config_choice.choose`.

    Raises:
        UsageError, ConfigError: see `read_checkpoint` and `choose`.
    """
    checkpoint = read_checkpoint(given, kind)
    chosen = choose(checkpoint.config, pin, change=change_config, where=str(checkpoint.path))
    model = TASKS[checkpoint.settings.kind].build(checkpoint.settings.sizes, chosen.config)
    load_model(checkpoint, model)
    model.to(device).eval()
    return TrainedModel(model, checkpoint, tuple(note for note in (checkpoint.note, chosen.note) if note))
