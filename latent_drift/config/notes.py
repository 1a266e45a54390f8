"""What the releases say about their own values: derivations, and what is known to be wrong."""

from __future__ import annotations

from collections.abc import Mapping

from latent_drift.config.catalogue import installed
from latent_drift.config.v1 import StabilityConfig


def notes_of(config: StabilityConfig) -> Mapping[str, str]:
    """Dotted path -> note, of the installed release that a config is of; empty where that is not installed."""
    catalogue = installed()
    if config.version in catalogue.versions and catalogue.release(config.version).sha256 == config.sha256:
        return catalogue.release(config.version).notes
    return {}


def note_on(notes: Mapping[str, str], path: str) -> str | None:
    """The note on a path, or on the closest section around it."""
    while path:
        if path in notes:
            return notes[path]
        path = path.rpartition(".")[0]
    return None
