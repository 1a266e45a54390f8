"""Keeps a run's folder up to date while the run goes on, so that a process that is killed leaves its report."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from instrument.report import folder as report_folder

if TYPE_CHECKING:
    from instrument.history import StepRecord
    from instrument.run import Run

SECONDS_BETWEEN = 2.0
GRACE, SHARE = 1.0, 1 / 200
"""Writing takes at most so many seconds and this share of a run's time: a folder that takes long to write is written less often."""


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
        self.stop = run.subscriptions.add(on_step=self._after_step, apart=True)

    def _after_step(self, record: StepRecord) -> None:
        known, now = len(self._run.log), time.monotonic()
        if (known > self._known or now >= self._due) and self._spent <= GRACE + SHARE * (now - self._began):
            self._known = known
            report_folder.save_recording(self._run, self._folder)
            ended = time.monotonic()
            self._spent += ended - now
            self._due = ended + SECONDS_BETWEEN

    def write_when_terminated(self) -> None:
        """On SIGTERM (a scheduler's time limit, a launcher whose other process died) write the folder, then die of it as the script would have.

        A script that handles the signal itself is left alone, and so are child processes that inherit this one's handlers.
        """
        if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        owner = os.getpid()

        def terminated(number: int, frame: FrameType | None) -> None:
            try:
                if os.getpid() == owner:
                    self._run.circumstances.end(f"was ended from outside ({signal.Signals(number).name})")
                    report_folder.save(self._run, self._folder)
            finally:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, terminated)
