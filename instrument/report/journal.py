"""Keeps a run's folder up to date while the run goes on, so that a process that is killed leaves its report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from instrument.report import folder as report_folder
from instrument.report import page

if TYPE_CHECKING:
    from instrument.history import StepRecord
    from instrument.run import Run

SECONDS_BETWEEN = 2.0
GRACE, SHARE = 0.5, 1 / 200
"""Writing takes at most this share of a run's time, and for events that are new so many seconds more: a folder that takes long to write is written
less often."""


class Journal:
    """Writes events, timeline and counts, between two steps: when an event is new, and every few seconds.

    Without a step there is nothing to write at: what a process did after its last step is in the folder only if it ends in a way that it can see,
    which is every way except being killed outright.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._began = time.monotonic()
        self._due = self._began + SECONDS_BETWEEN
        self._known = self._spent = 0.0
        report_folder.begin(folder)
        page.template()
        self.stop = run.subscriptions.add(on_step=self.after_step, apart=True)

    def after_step(self, record: StepRecord) -> None:
        """A step is over: write if there is news or it is time to."""
        known, now = len(self._run.log), time.monotonic()
        news = known > self._known
        if (news or now >= self._due) and self._spent <= SHARE * (now - self._began) + (GRACE if news else 0.0):
            self._known = known
            report_folder.save_recording(self._run, self._folder)
            ended = time.monotonic()
            self._spent += ended - now
            self._due = ended + SECONDS_BETWEEN

    def write_last(self, state: str) -> None:
        """The process ends now, in this way: write everything, the page included."""
        self._run.circumstances.end(state)
        report_folder.save(self._run, self._folder)
