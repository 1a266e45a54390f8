"""`--live`: what a run is doing, at the foot of the terminal while it goes on; without a terminal a line now and then. Always on standard error.

On a terminal the last rows are set apart by its scroll region, so whatever the script prints (also from C or from a child process) scrolls above
them and goes where it went before: nothing of the script's output is captured or replaced.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from instrument.events import Event
from instrument.history import StepRecord
from instrument.report.terminal import place

if TYPE_CHECKING:
    from instrument.run import Run

SECONDS_BETWEEN_DRAWINGS = 0.25
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_NEWS = 1.0
SHARE = 1 / 100
"""Drawing takes at most this share of a run's time."""

_ROWS = 5
_LEAST_ROWS, _LEAST_COLUMNS = 12, 30
_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
_BAD = "x"


class Following:
    """The latest of a run: its last step, its gradient norms, what was done."""

    def __init__(self) -> None:
        self.record: StepRecord | None = None
        self.norms: deque[float | None] = deque(maxlen=512)
        self.counts: dict[tuple[object, ...], Event] = {}
        self.last_event: Event | None = None

    def step(self, record: StepRecord) -> None:
        """An optimizer step is over."""
        self.record = record
        self.norms.append(record.gradient_norm)

    def event(self, event: Event) -> bool:
        """An event, told with its total count; returns whether it is a new one."""
        new = event.key not in self.counts
        self.counts[event.key] = event
        if new or self.last_event is None or self.last_event.key == event.key or event.code != "NS507":
            self.last_event = event
        return new

    @property
    def interventions(self) -> int:
        """How many times a number was altered."""
        return sum(event.count for event in self.counts.values() if event.repaired)

    def done(self) -> str:
        """What was done, by action: `55 repaired, 8 clipped`; or that nothing was."""
        by_action: dict[str, int] = {}
        for event in self.counts.values():
            by_action[event.action] = by_action.get(event.action, 0) + event.count
        return ", ".join(f"{count} {action}" for action, count in by_action.items()) or "nothing had to be done"

    def latest(self) -> str:
        """The last event, with its place whole."""
        event = self.last_event
        return "" if event is None else f"{place(event)} {event.code} {event.name}: {event.action}, step {event.last_step}"


def sparkline(values: Iterable[float | None], width: int, bars: str = _BARS) -> str:
    """The latest values as a row of bars on a logarithmic scale; what is not finite is an x, what is not known a blank."""
    shown = list(values)[-width:]
    logs = [math.log10(v) for v in shown if v is not None and math.isfinite(v) and v > 0.0]
    low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)

    def bar(value: float | None) -> str:
        if value is None:
            return " "
        if not math.isfinite(value):
            return _BAD
        if value <= 0.0 or high <= low:
            return bars[0]
        return bars[round((math.log10(value) - low) / (high - low) * (len(bars) - 1))]

    return "".join(map(bar, shown))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


class Lines:
    """For a pipe or a log file: a line at the first step, then every ten seconds, and when something happens for the first time."""

    def __init__(self, stream: TextIO, between: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream = stream
        self._between = between
        self._following = Following()
        self._written: float | None = None
        self._news = False
        self._shown: StepRecord | None = None

    def event(self, event: Event) -> None:
        """Remember an event; one that is new is told soon."""
        self._news = self._following.event(event) or self._news

    def step(self, record: StepRecord) -> None:
        """Write a line if it is time for one."""
        self._following.step(record)
        now = time.monotonic()
        passed = math.inf if self._written is None else now - self._written
        if passed >= self._between or (self._news and passed >= min(SECONDS_BETWEEN_NEWS, self._between)):
            self._write(now)

    def close(self) -> None:
        """The last step, unless its line is written already."""
        if self._following.record is not self._shown or self._news:
            self._write(time.monotonic())

    def _write(self, now: float) -> None:
        self._written, self._news = now, False
        latest = self._following.latest()
        record = self._shown = self._following.record
        text = "latent-drift: " + (
            "no step yet" if record is None else f"step {record.step}, loss {_number(record.loss)}, gradient norm {_number(record.gradient_norm)}"
        )
        self._stream.write(f"{text}; {self._following.done()}{f'; last {latest}' if latest else ''}\n")
        self._stream.flush()


class Foot:
    """The last rows of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._following = Following()
        self._due = 0.0
        self._size: os.terminal_size | None = None
        self._bars = _BARS if _can_write(stream, _BARS) else _PLAIN_BARS

    def event(self, event: Event) -> None:
        """Remember an event."""
        self._following.event(event)

    def step(self, record: StepRecord) -> None:
        """Draw if it is time to."""
        self._following.step(record)
        now = time.monotonic()
        if now >= self._due:
            self._draw()
            self._due = time.monotonic() + max(SECONDS_BETWEEN_DRAWINGS, (time.monotonic() - now) / SHARE)

    def close(self) -> None:
        """Give the rows back to the script, and leave the last state as ordinary lines."""
        if self._size is not None:
            rows = self._size.lines
            self._stream.write(f"\0337\033[r\0338\0337\033[{rows - _ROWS + 1};1H\033[J\0338")
            self._size = None
        self._stream.flush()

    def _draw(self) -> None:
        size = os.get_terminal_size(self._stream.fileno())
        if size.lines < _LEAST_ROWS or size.columns < _LEAST_COLUMNS:
            self.close()
            return
        text = ""
        if size != self._size:
            # Room below the cursor first; then the region, which moves the cursor, so that is kept and brought back.
            text += "\n" * _ROWS + f"\033[{_ROWS}A\0337\033[1;{size.lines - _ROWS}r\0338"
            self._size = size
        first = size.lines - _ROWS + 1
        rows = "".join(f"\033[{first + index};1H\033[2K{line}" for index, line in enumerate(self.lines(size.columns)))
        self._stream.write(f"{text}\0337{rows}\0338")
        self._stream.flush()

    def lines(self, columns: int) -> list[str]:
        """The rows as they stand now, each at most `columns` wide, with the terminal's colours."""
        following, record = self._following, self._following.record
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(style="dim", width=9, no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        outcome = "" if record is None or record.outcome == "stepped" else f"  {record.outcome}"
        table.add_row(
            "step", Text.assemble((str(record.step if record else 0), "bold"), f"  loss {_number(record.loss if record else None)}", outcome)
        )
        table.add_row("gradient", _number(record.gradient_norm if record else None) + "  " + sparkline(following.norms, columns - 24, self._bars))
        table.add_row("done", Text(following.done(), style="" if following.interventions else "green"))
        table.add_row("last", Text(following.latest(), style="yellow"))
        page = io.StringIO()
        console = Console(file=page, width=columns, force_terminal=True, color_system="standard", legacy_windows=False, _environ={})
        console.rule(Text("latent-drift", style="dim"), style="dim", characters="─" if self._bars == _BARS else "-")
        console.print(table)
        return page.getvalue().splitlines()[:_ROWS]


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def follow(run: Run, stream: TextIO) -> Foot | Lines | None:
    """Show a run on `stream` until its block closes: at the foot of a terminal, else as lines. Of several processes only the first is shown."""
    if run.rank:
        return None
    view = Foot(stream) if stream.isatty() and os.environ.get("TERM", "") != "dumb" and os.name == "posix" else Lines(stream)
    run.subscriptions.add(view.event, view.step, view.close, apart=True)
    return view
