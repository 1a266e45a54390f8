"""Pairwise, interleaved timing: A B A B ..., one ratio a pair, the median with its quartiles.

Machines are shared and noisy, so no absolute time is a claim here: a ratio of two runs that stood next to each other is.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is A / B (or a plain quantity with its unit); `bar` is what it must not exceed (or must reach)."""

    area: str
    name: str
    ratio: float
    low: float
    high: float
    pairs: int
    bar: float | None = None
    at_least: bool = False
    unit: str = "x"
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None where there is none."""
        if self.bar is None:
            return None
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar

    def as_dict(self) -> dict[str, object]:
        """For the JSON file."""
        return {**asdict(self), "holds": self.holds}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version(), "processor": platform.machine()}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def seconds(work: Work, repeats: int) -> float:
    """Wall time of `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return time.perf_counter() - start


def paired(
    area: str,
    name: str,
    a: Work,
    b: Work,
    *,
    bar: float | None = None,
    at_least: bool = False,
    pairs: int = 21,
    repeats: int = 10,
    around_a: Callable[[], object] | None = None,
    warm: int = 1,
    note: str = "",
) -> Row:
    """The median of time(A) / time(B) over interleaved pairs; more pairs where the quartiles straddle the bar by more than 0.05.

    Args:
        around_a: makes the context manager under which A runs (entered for each pair, outside of the timing).
        warm: untimed calls of each before its timed ones.
    """
    from contextlib import nullcontext

    ratios: list[float] = []

    def one_pair() -> float:
        with around_a() if around_a is not None else nullcontext():  # type: ignore[attr-defined]
            for _ in range(warm):
                a()
            time_a = seconds(a, repeats)
        for _ in range(warm):
            b()
        return time_a / seconds(b, repeats)

    one_pair()
    while True:
        ratios += [one_pair() for _ in range(pairs)]
        low, middle, high = quartiles(ratios)
        straddles = bar is not None and low < bar < high and high - low > 0.05
        if not straddles or len(ratios) >= 3 * pairs:
            return Row(area, name, middle, low, high, len(ratios), bar, at_least, note=note)
