"""Growth in the history of a run: a learning rate, a loss or a gradient norm that rises by a factor a step, an argument that rises by an amount."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from instrument.history import StepRecord

FEWEST_STEPS = 4
LEAST_GROWTH = 30.0  # in all: noise of batches stays below
MOSTLY = 0.7  # of the steps rise
ALONG_A_LINE = 0.8  # correlation of values and steps
LEAP = 0.2  # of a rise that has to come before its last step
EXPLODED = 1e4  # float16 overflows at 6.5e4
RUNAWAY_GROWTH = 1e3
RUNAWAY_RATE = 1.0
"""A schedule that brought the rate up a thousandfold, to 1 and more, is the cause itself: warm-up ends below, and an optimizer's step of 1 is larger
than most weights."""


@dataclass(frozen=True, slots=True)
class Growth:
    """A number that rose from `first` to `last` over `steps` steps, `factor` times a step."""

    first: float
    last: float
    steps: int

    @property
    def factor(self) -> float:
        """The mean factor of one step."""
        return math.exp((math.log(self.last) - math.log(self.first)) / self.steps)

    def over(self, unit: str) -> str:
        """The growth in words, by the unit (`step`, `call`) that it is counted in."""
        return f"grew {self.factor:.3g} x a {unit} over the last {self.steps} {unit}s, from {self.first:.3g} to {self.last:.3g}"

    def __str__(self) -> str:
        return self.over("step")


def growth(values: Sequence[float | None], least: float = LEAST_GROWTH) -> Growth | None:
    """The stretch up to the last value over which it grew most, if it did so steadily and at least `least` times in all."""
    sizes: list[float] = []
    for value in reversed(values):
        if value is None or not math.isfinite(value) or value == 0.0:
            break
        sizes.append(abs(value))
    sizes.reverse()
    if len(sizes) <= FEWEST_STEPS:
        return None
    start = min(range(len(sizes) - FEWEST_STEPS), key=lambda i: sizes[i])
    part = sizes[start:]
    rising = sum(later > earlier for earlier, later in itertools.pairwise(part))
    if part[-1] < least * part[0] or rising < MOSTLY * (len(part) - 1):
        return None
    return Growth(part[0], part[-1], len(part) - 1)


@dataclass(frozen=True, slots=True)
class Rise:
    """A number that rose from `first` to `last` over `steps` steps, by about the same each step: a log-variance on its way to overflow."""

    first: float
    last: float
    steps: int

    def __str__(self) -> str:
        slope = (self.last - self.first) / self.steps
        return f"rose by {slope:.3g} a step over the last {self.steps} steps, from {self.first:.3g} to {self.last:.3g}"


def rise(values: Sequence[tuple[int, float]]) -> Rise | None:
    """The stretch up to the last of these (step, value) over which the value rose, if it did so steadily and not in one leap at the end.

    Batches differ: either values some steps apart are compared, or all lie along a line.
    """
    if len(values) <= FEWEST_STEPS:
        return None
    start = min(range(len(values) - FEWEST_STEPS), key=lambda i: values[i][1])
    part = values[start:]
    steps, sizes = zip(*part, strict=True)
    apart = max(1, len(part) // 8)
    rising = sum(later > earlier for earlier, later in zip(sizes, sizes[apart:], strict=False))
    total = sizes[-1] - sizes[0]
    if not total > 0.0 or max(sizes[:-1]) - sizes[0] < LEAP * total:
        return None
    if rising < MOSTLY * (len(part) - apart) and (
        min(sizes[:-1]) == max(sizes[:-1]) or statistics.correlation(steps[:-1], sizes[:-1]) < ALONG_A_LINE
    ):
        return None
    return Rise(sizes[0], sizes[-1], steps[-1] - steps[0])


def recurrence(sizes: Sequence[float]) -> Growth | None:
    """The growth of results of one line from call to call within one step, in order of the calls, if it is of a recurrence that explodes: layers
    that follow one another amplify, but not by so much in all."""
    return growth(sizes, least=EXPLODED)


@dataclass(frozen=True, slots=True)
class Trend:
    """What the latest steps say about how it came to a failure. `is_runaway`: the learning rate itself grew without bound."""

    text: str
    is_runaway: bool


def trend_of(records: Sequence[StepRecord]) -> Trend | None:
    """The trend of the latest steps of one optimizer, oldest first; None where nothing grew."""
    healthy = [r for r in records if r.outcome in ("stepped", "clipped")]
    rate = growth([r.learning_rate for r in healthy], least=10.0)
    loss = growth([r.loss for r in _until_finite(healthy, "loss")])
    norm = growth([r.gradient_norm for r in _until_finite(healthy, "gradient_norm")])
    latest = next((r.learning_rate for r in reversed(healthy) if r.learning_rate is not None), None)
    said = [f"the {name} {found}" for name, found in (("learning rate", rate), ("loss", loss), ("gradient norm", norm)) if found is not None]
    if not said:
        return None
    if rate is None and latest is not None:
        said.append(f"the learning rate is {latest:.3g}")
    runaway = rate is not None and rate.last >= RUNAWAY_GROWTH * rate.first and rate.last >= RUNAWAY_RATE
    return Trend("; ".join(said), runaway)


def _until_finite(records: Sequence[StepRecord], name: str) -> Sequence[StepRecord]:
    """Without the last steps at which the number was no longer finite: the growth led there."""
    end = len(records)
    while end and not _is_number(getattr(records[end - 1], name)):
        end -= 1
    return records[:end]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
