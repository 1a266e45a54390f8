"""What is done in a process that the script forks: it inherits the guards, and its own log dies with it, so it tells the process that it came from.

`--children` opens a block of its own in every child instead, with a report of its own (`instrument.children`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from instrument.events import Event

if TYPE_CHECKING:
    from instrument.run import Run

MOST_TOLD = 2_000
"""Occurrences that one process tells."""


class Forked:
    """The events of the processes that were forked from the one that runs the script."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._file = Path(tempfile.gettempdir()) / f"latent-drift-events-{uuid.uuid4().hex}.jsonl"
        self._told = 0

    def begin(self, run: Run) -> None:
        """This process was forked just now."""
        self._told = 0
        run.log.forward = self._tell

    def _tell(self, event: Event) -> None:
        self._told += 1
        if self._told <= MOST_TOLD:
            with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
                file.write(event.as_json() + "\n")

    def close(self, run: Run) -> None:
        """In the process that runs the script: record what the others told, and leave no file behind."""
        if os.getpid() != self._process:
            return
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        self._file.unlink(missing_ok=True)
        for line in lines:
            with contextlib.suppress(ValueError):  # a process that was killed while it wrote
                event = Event.from_json(line)
                run.log.record(replace(event, message=f"{event.message}; in a process that the script forked"))
