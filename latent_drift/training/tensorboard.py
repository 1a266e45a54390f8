"""The records of a run for TensorBoard (extra `tensorboard`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_drift.errors import MissingExtraError


class TensorBoardLog:
    """Writes every number of a record as a scalar of its step.

    Args:
        folder: for the event files.
        first_step: records of steps from here on that an earlier process left are hidden.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard", "tensorboard") from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step)  # type: ignore[no-untyped-call]

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take a record of metrics.jsonl."""
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                self._writer.add_scalar(name, float(value), record["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write what is left, if it can be."""
        try:
            self._writer.close()  # type: ignore[no-untyped-call]
        except OSError:  # a full disk: the metrics have it all
            pass
