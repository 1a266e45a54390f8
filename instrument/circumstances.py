"""When, where and how a run took place: what a report says beside its numbers."""

from __future__ import annotations

import platform
import sys
import time
from datetime import UTC, datetime
from typing import Any

import torch

from instrument.report.rank import process_rank
from latent_drift.errors import GiveUpError

RUNNING, FINISHED = "running", "finished"


def ended_by(error: BaseException | None) -> str:
    """How a block ended that this exception left, as the end of a sentence."""
    if error is None or isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return FINISHED
    if isinstance(error, SystemExit):
        return f"ended with exit status {error.code}" if isinstance(error.code, int) else f"ended itself: {error.code}"
    if isinstance(error, KeyboardInterrupt):
        return "was interrupted"
    if isinstance(error, GiveUpError):
        return f"gave up: {error}"
    return f"ended by {type(error).__name__}: {error}"


class Circumstances:
    """The outer facts of one run: its script, its process in a distributed job, its times, and how it ended."""

    def __init__(self) -> None:
        self.state = RUNNING
        """`running`, `finished`, or what ended it, as the end of a sentence: `ended by ValueError`."""
        self._started = datetime.now(UTC)
        self._began = time.monotonic()
        self._seconds: float | None = None
        self._rank = process_rank()

    @property
    def rank(self) -> int | None:
        """The rank of this process in its job, None alone. A process group that is gone by the time a report is written is remembered."""
        found = process_rank()
        self._rank = found if found is not None else self._rank
        return self._rank

    def end(self, state: str = FINISHED) -> None:
        """The block closes; what was said first about how stays."""
        if self.state == RUNNING:
            self.state = state
        if self._seconds is None:
            self._seconds = time.monotonic() - self._began

    def facts(self) -> dict[str, Any]:
        """For summary.json: times in UTC and seconds."""
        rank = self.rank
        return {
            "state": self.state,
            "script": sys.argv[0] if sys.argv else "",
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(self._seconds if self._seconds is not None else time.monotonic() - self._began, 3),
            "python": platform.python_version(),
            "torch": torch.__version__,
            **({} if rank is None else {"rank": rank}),
        }
