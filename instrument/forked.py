"""What is done in a process that the script forks: it inherits the guards, and its own log dies with it, so it tells the process that it came from.

`--children` opens a block of its own in every child instead, with a report of its own (`instrument.children`).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from instrument.events import Event
from instrument.told_lines import ToldLines

if TYPE_CHECKING:
    from instrument.run import Run

MOST_TOLD = 2_000
"""Occurrences that one process tells."""


class Forked:
    """The events of the processes that were forked from the one that runs the script."""

    def __init__(self) -> None:
        self._lines = ToldLines("events")
        self._told = 0

    def begin(self, run: Run) -> None:
        """This process was forked just now."""
        self._told = 0
        run.log.forward = self._tell

    def _tell(self, event: Event) -> None:
        self._told += 1
        if self._told <= MOST_TOLD:
            self._lines.tell(event.as_json())

    def close(self, run: Run) -> None:
        """In the process that runs the script: record what the others told, and leave no file behind."""
        if self._lines.is_forked:
            return
        told = self._lines.read()
        self._lines.forget()
        for line in told:
            with contextlib.suppress(ValueError):  # a process that was killed while it wrote
                event = Event.from_json(line)
                run.log.record(replace(event, message=f"{event.message}; in a process that the script forked"))
