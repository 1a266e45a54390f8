"""Scalars for TensorBoard (extra `tensorboard`): loss, gradient norm, learning rate, skipped steps, and interventions by finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instrument.events import Event
from instrument.export.base import Exporter, needed
from instrument.history import StepRecord


class TensorBoardExporter(Exporter):
    """Writes scalars under `latent_drift/` into a log folder, or with a `SummaryWriter` that the caller keeps.

    Args:
        where: the folder (of a distributed job `rank-N` in it), or a writer.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, where: str | Path | Any) -> None:
        super().__init__()
        self._given = where if hasattr(where, "add_scalar") else None
        self._folder = Path(where) if self._given is None else None
        self._module = None if self._given is not None else needed("torch.utils.tensorboard", "TensorBoard output", "tensorboard", "tensorboard")
        self._writer: Any = self._given
        self._step = 0
        self._skipped = 0

    def begin(self, rank: int | None) -> None:
        """Open the folder's writer."""
        super().begin(rank)
        self._step = self._skipped = 0
        if self._module is not None and self._folder is not None:
            self._writer = self._module.SummaryWriter(str(self._folder if rank is None else self._folder / f"rank-{rank}"))

    def step(self, record: StepRecord) -> None:
        """One point a scalar."""
        self._step = record.step
        for name, value in (("loss", record.loss), ("gradient_norm", record.gradient_norm), ("learning_rate", record.learning_rate)):
            if value is not None:
                self._writer.add_scalar(f"latent_drift/{name}", value, record.step)
        if record.outcome in ("skipped", "rolled-back"):
            self._skipped += 1
            self._writer.add_scalar("latent_drift/skipped_steps", self._skipped, record.step)

    def event(self, event: Event, new: int) -> None:
        """The running count of the finding's interventions or observations at this place."""
        self._writer.add_scalar(f"latent_drift/events/{event.code}_{event.name}_{event.action}", self._total(event), event.last_step + 1)

    def _total(self, event: Event) -> int:
        """Of all places: several lines may have one finding."""
        return sum(count for key, count in self._counted.items() if key[:2] == event.key[:2])

    def close(self) -> None:
        """Flush; a writer that the caller gave stays open."""
        if self._writer is not None:
            self._writer.flush()
            if self._given is None:
                self._writer.close()
