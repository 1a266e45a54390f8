"""Under which stability config a checkpoint is used: its own, unless somebody says otherwise and means it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from latent_drift.config import StabilityConfig, load
from latent_drift.config.compare import compare, compare_saved
from latent_drift.config.load import statements
from latent_drift.errors import UsageError

OWN: Final = "checkpoint"
"""The pin that asks for the checkpoint's own config, whatever the project says."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A config, and what to tell the user about it."""

    config: StabilityConfig
    note: str | None = None


def choose(saved: StabilityConfig, pin: str | None, *, change: bool = False, where: str = "the checkpoint") -> Chosen:
    """The config to use a checkpoint under.

    Args:
        saved: the checkpoint's.
        pin: what `--config` says, None for nothing. Then `LATENT_DRIFT_CONFIG` and the project's pyproject.toml are asked.
        change: whether another config than the checkpoint's is meant.
        where: the checkpoint, for the message.

    Returns:
        The checkpoint's own config where nobody asks for one, or for one of the same values. Otherwise, with `change`, the one
        that was asked for, and a note of the fields that differ.

    Raises:
        UsageError: another config was asked for without `change`; it names the fields.
        ConfigError: the pin is none.
    """
    if pin == OWN or (pin is None and not statements(None, None, {})):
        return Chosen(saved)
    asked = load(pin)
    if not compare(saved, asked):
        return Chosen(saved)
    difference = compare_saved(saved.document(), asked)
    if change:
        return Chosen(asked, f"{where}: {difference}")
    source = f"--config {pin}" if pin is not None else "the project's pin (LATENT_DRIFT_CONFIG or pyproject.toml)"
    raise UsageError(
        f"{where}: {difference}\n{source} asks for other numerics than the checkpoint was made with. "
        f"Give --config {OWN} to use the checkpoint's own, or add --change-config to use the given one."
    )
