"""How far a run has come: a bar in a terminal, a line now and then elsewhere. All on standard error."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES: Final = 30.0
"""Where there is no terminal."""

SMOOTHING: Final = 0.05
"""Weight of a step in the shown loss: one batch alone jumps too much to be read."""

LEAST_BAR: Final = 12
"""Columns that the bar keeps in a narrow terminal."""

_CLOCK: Final = 14  # the time that is left, up to h:mm:ss, the slash of the steps, and the gaps between columns

MOST_SKIPS_SHOWN: Final = 5
"""Notes of skipped steps; after that only their number grows."""


class _Standing(Console):
    """A console whose reader may go away, or whose disk may be full, without ending a run that is shown on it."""

    def on_broken_pipe(self) -> None:
        """Show nothing more."""
        self.quiet = True

    def say(self, text: str) -> None:
        """A line, if it can be written."""
        try:
            self.print(Text(text))
        except OSError:
            self.quiet = True


class RunProgress:
    """Shows the records of a run.

    Args:
        total: steps of the whole run.
        first: steps taken before.
        headline: name of the statistic to show beside the loss.
        quiet: show notes only.
    """

    def __init__(self, total: int, first: int, headline: str, quiet: bool = False) -> None:
        self._console = _Standing(file=sys.stderr, highlight=False, soft_wrap=True)
        self._total, self._headline, self._quiet = total, headline, quiet
        self._loss = self._shown = math.nan
        self._skipped = 0
        self._start_step, self._start = first, time.monotonic()
        self._next_line = self._start
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task("training", total=total, completed=first, figures="")

    def __enter__(self) -> Self:
        self._start = self._next_line = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, record: dict[str, Any]) -> None:
        """Take the record of a step."""
        self._skipped += bool(record["skipped"])
        self._loss = _smoothed(self._loss, record["loss"])
        self._shown = _smoothed(self._shown, record[self._headline])
        done = record["step"] + 1
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=self._figures(record))
        elif not self._quiet and (done == self._total or time.monotonic() >= self._next_line):
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            rate = (done - self._start_step) / max(time.monotonic() - self._start, 1e-9)
            self._console.say(f"step {done}/{self._total}  {self._figures(record)}  {rate:.1f} steps/s")

    def note(self, text: str) -> None:
        """Say something above the bar."""
        if "skipped" in text and self._skipped >= MOST_SKIPS_SHOWN:
            if self._skipped == MOST_SKIPS_SHOWN:
                self._console.say("further skipped steps are only counted here; metrics.jsonl has them")
            return
        self._console.say(text)

    def _figures(self, record: dict[str, Any]) -> str:
        """The figures of a step, as many as there is room for beside the bar."""
        figures = [f"loss {self._loss:.4f}", f"{self._headline} {self._shown:.3f}", f"|g| {record['grad_norm']:.2f}", f"lr {record['lr']:.1e}"]
        if self._skipped:
            figures.insert(1, f"{self._skipped} skipped")
        if self._bar is not None:
            room = self._console.width - LEAST_BAR - 2 * len(str(self._total)) - _CLOCK
            while len(figures) > 1 and len("  ".join(figures)) > room:
                figures.pop()
        return "  ".join(figures)


def _smoothed(before: float, value: float) -> float:
    if not math.isfinite(value):
        return before
    return value if math.isnan(before) else before + SMOOTHING * (value - before)
