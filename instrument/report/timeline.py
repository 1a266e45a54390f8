"""The timeline as geometry: one path a curve, gaps where a number was not finite, a tick for each intervention. Coordinates are from 0 to 1000.

Steps are counted here as events count them, by the steps finished before: the first is 0, as in `for step in range(n)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instrument.events import STEPS_KEPT, Event
from instrument.history import StepRecord
from instrument.report.recording import Recording
from instrument.report.scales import Scale, Tick, fitting
from instrument.report.terminal import place

SIZE = 1000.0

MOST_RECORDS = 8192
"""Steps drawn on a page, of all processes together; a page of a large job stays as quick as one of a single process."""

MOST_CURVES = 8
"""Processes that are drawn; more could not be told apart."""

LANES = {"clipped": "clipped", "mended": "mended", "skipped": "skipped", "observed": "observed"}
"""The rows of marks beneath the curves, in their order."""
LANE_OF = {
    "clipped": "clipped",
    "bounded": "mended",
    "repaired": "mended",
    "neutralised": "mended",
    "zeroed": "mended",
    "skipped": "skipped",
    "rolled-back": "skipped",
    "observed": "observed",
    "warned": "observed",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One process's line in a panel. `path` has as many vertices as there are finite values; `points` are those with no finite neighbour."""

    rank: int | None
    path: str
    points: str
    finite: int


@dataclass(frozen=True, slots=True)
class Panel:
    """A quantity over the steps: its curves, the scale's ticks, and where it was not finite."""

    key: str
    title: str
    kind: str
    curves: tuple[Curve, ...]
    ticks: tuple[Tick, ...]
    gaps: tuple[tuple[float, int], ...]
    """(x, step) of each value that was nan or inf."""
    peak: float | None
    """The largest value, where it is beyond the axis."""

    @property
    def shown(self) -> bool:
        """Whether there is anything to draw."""
        return any(curve.finite for curve in self.curves) or bool(self.gaps)


@dataclass(frozen=True, slots=True)
class Mark:
    """An intervention at a step: where, in which lane, and what is said on pointing at it."""

    x: float
    step: int
    lane: str
    title: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Everything that the plot shows, and the records for its readout."""

    panels: tuple[Panel, ...]
    lanes: tuple[tuple[str, tuple[Mark, ...]], ...]
    ticks: tuple[Tick, ...]
    first: int
    last: int
    records: int
    partly: bool
    """Whether some event occurred at more steps than are known one by one."""
    data: list[list[Any]]
    """[step, loss, gradient norm, learning rate, outcome, rank] of every record, non-finite numbers as text."""


def build(recordings: Sequence[Recording], events: Sequence[Event]) -> Timeline | None:
    """The timeline of a report; None where no step was recorded."""
    drawn = _drawn(recordings)
    everything = [(one.rank, record) for one in drawn for record in one.timeline]
    if not everything:
        return None
    first = min(index(record) for _, record in everything)
    last = max(index(record) for _, record in everything)
    across = Scale("linear", float(first), float(last))

    def x_of(step: float) -> float:
        return round(across(step) * SIZE, 2)

    panels = (
        _panel("loss", "loss", drawn, lambda record: record.loss, x_of, logarithmic=False),
        _panel("norm", "gradient norm", drawn, lambda record: record.gradient_norm, x_of, logarithmic=True),
    )
    ticks = [tick for tick in across.ticks(6) if "." not in tick.label] or [Tick(0.5, str(first))]
    data = [[index(r), _said(r.loss), _said(r.gradient_norm), _said(r.learning_rate), r.outcome, rank] for rank, r in everything]
    lanes = _lanes(everything, events, x_of, first, last)
    partly = any(len(event.steps) >= STEPS_KEPT and event.last_step not in event.steps for event in events)
    return Timeline(tuple(p for p in panels if p.shown), lanes, tuple(ticks), first, last, len(everything), partly, data)


def telling(recordings: Sequence[Recording], most: int) -> list[Recording]:
    """At most `most` processes, those with events before others, in the order of their ranks."""
    chosen = sorted(recordings, key=lambda one: (not one.events, one.rank or 0))[:most]
    return sorted(chosen, key=lambda one: one.rank or 0)


def _drawn(recordings: Sequence[Recording]) -> list[Recording]:
    """The recordings to draw, each with its share of the steps: those at which something was done first, the others evenly thinned."""
    chosen = telling([one for one in recordings if one.timeline], MOST_CURVES)
    found = []
    for one in chosen:
        room = MOST_RECORDS // len(chosen)
        stride = -(-len(one.timeline) // room)
        kept = [r for at, r in enumerate(one.timeline) if at % stride == 0 or (stride > 1 and r.outcome != "stepped")]
        found.append(replace(one, timeline=tuple(kept)))
    return found


def index(record: StepRecord) -> int:
    """The number of steps finished before this one."""
    return record.step - 1


def _said(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _panel(
    key: str,
    title: str,
    recordings: Sequence[Recording],
    value_of: Callable[[StepRecord], float | None],
    x_of: Callable[[float], float],
    *,
    logarithmic: bool,
) -> Panel:
    values = [value for one in recordings for record in one.timeline if (value := value_of(record)) is not None]
    finite = [v for v in values if math.isfinite(v)]
    scale = fitting(finite, logarithmic=logarithmic)
    peak = max(finite) if finite and max(finite) > scale.high else None
    curves = []
    gaps: dict[int, float] = {}
    for one in recordings:
        pieces: list[list[str]] = [[]]
        for record in one.timeline:
            value = value_of(record)
            if value is None or not math.isfinite(value):
                pieces.append([])
                if value is not None:
                    gaps[index(record)] = x_of(index(record))
                continue
            pieces[-1].append(f"{x_of(index(record)):g} {SIZE - round(scale(value) * SIZE, 2):g}")
        lines = [piece for piece in pieces if piece]
        path = "".join("M" + "L".join(piece) for piece in lines)
        points = "".join(f"M{piece[0]}h0" for piece in lines if len(piece) == 1)
        curves.append(Curve(one.rank, path, points, sum(map(len, lines))))
    return Panel(key, title, scale.kind, tuple(curves), tuple(scale.ticks()), tuple((x, step) for step, x in sorted(gaps.items())), peak)


def _lanes(
    records: Iterable[tuple[int | None, StepRecord]], events: Sequence[Event], x_of: Callable[[float], float], first: int, last: int
) -> tuple[tuple[str, tuple[Mark, ...]], ...]:
    """What was done at which step: from the outcomes of the steps, and from the events, whose first steps and latest are known."""
    said: dict[tuple[str, int], list[str]] = {}
    for rank, record in records:
        lane = LANE_OF.get(record.outcome)
        if lane is not None:
            text = record.outcome if rank is None else f"{record.outcome} (rank {rank})"
            said.setdefault((lane, index(record)), []).append(text)
    for event in events:
        text = f"{event.code} {event.name}, {event.action} at {place(event)}"
        for step in dict.fromkeys((*event.steps, event.last_step)):
            said.setdefault((LANE_OF[event.action], min(max(step, first), last)), []).append(text)
    lanes: dict[str, list[Mark]] = {}
    for (lane, step), texts in sorted(said.items(), key=lambda item: item[0][1]):
        lanes.setdefault(lane, []).append(Mark(x_of(step), step, lane, f"step {step}: " + "; ".join(dict.fromkeys(texts))))
    return tuple((lane, tuple(lanes[lane])) for lane in LANES if lane in lanes)
