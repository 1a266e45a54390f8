"""From a number to a place on a plot: linear, logarithmic, or logarithmic on both sides of zero; and the ticks beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log", "symlog"]

_WIDE = 30.0
"""A ratio of largest to smallest above which a linear axis hides the small values."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across the plot: its place from the bottom (0 to 1) and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A range of values on an axis from 0 (bottom) to 1 (top). `unit` is where a symlog axis turns from linear to logarithmic."""

    kind: Kind
    low: float
    high: float
    unit: float = 1.0

    def __call__(self, value: float) -> float:
        """Where a finite value lies, from 0 to 1; what is outside is put at the edge."""
        to = self._to()
        low, high = to(self.low), to(self.high)
        if self.kind == "log" and value <= 0.0:
            return 0.0
        return min(1.0, max(0.0, (to(value) - low) / (high - low))) if high > low else 0.5

    def _to(self) -> Callable[[float], float]:
        if self.kind == "log":
            return math.log10
        if self.kind == "symlog":
            return lambda value: math.asinh(value / self.unit)
        return float

    def ticks(self, most: int = 5) -> list[Tick]:
        """At most `most` round values."""
        return [Tick(self(value), _label(value)) for value in self._values(most)]

    def _values(self, most: int) -> list[float]:
        if self.kind == "log":
            return _decades(math.log10(self.low), math.log10(self.high), most) or [self.low, self.high]
        if self.kind == "symlog":
            reach = max(abs(self.low), abs(self.high))
            exponents = range(math.floor(math.log10(self.unit)), math.floor(math.log10(reach)) + 1)
            step = max(1, math.ceil(len(exponents) / max(1, most // 2)))
            sizes = [10.0**e for e in reversed(exponents)][::step]
            return [v for v in [*(-s for s in sizes), 0.0, *reversed(sizes)] if self.low <= v <= self.high]
        return _round_values(self.low, self.high, most)


def _decades(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last - first < 1:  # less than two powers of ten: 1, 2 and 5 of each
        return [m * 10.0**e for e in range(math.floor(low), last + 1) for m in (1, 2, 5) if low <= math.log10(m * 10.0**e) <= high][:most]
    step = max(1, math.ceil((last - first + 1) / most))
    return [10.0**e for e in range(first, last + 1, step)]


def _round_values(low: float, high: float, most: int) -> list[float]:
    span = high - low
    if not span > 0.0 or not math.isfinite(span):
        return [low]
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * m for m in (1, 2, 5, 10) if span / (size * m) <= most)
    return [round(k * step, 12) if abs(step) >= 1e-9 else k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _label(value: float) -> str:
    if value == 0.0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def core(values: Sequence[float], aside: float = 0.05) -> tuple[float, float]:
    """The range to show of positive values on a logarithmic axis: all of it, unless single peaks would flatten everything else.

    That of the values without the share `aside` at each end, and as many powers of ten again on either side, but at least one.
    """
    ordered = sorted(values)
    left_out = int((len(ordered) - 1) * aside)
    low, high = ordered[left_out], ordered[-1 - left_out]
    reach = max(1.0, math.log10(high) - math.log10(low))
    bottom, top = math.log10(low) - reach, math.log10(high) + reach
    return max(ordered[0], _power(bottom)), min(ordered[-1], _power(top))


def _power(exponent: float) -> float:
    return math.pow(10.0, min(max(exponent, -307.0), 308.0))


def fitting(values: Sequence[float], *, logarithmic: bool = False) -> Scale:
    """The scale that shows these finite values: logarithmic if asked for or if they spread widely, on both sides of zero where some are negative."""
    if not values:
        return Scale("linear", 0.0, 1.0)
    low, high = min(values), max(values)
    positive = [v for v in values if v > 0.0]
    if positive and low >= 0.0 and (logarithmic or high / min(positive) > _WIDE):
        bottom, top = core(positive)
        return Scale("log", max(bottom / 1.25, 1e-307), min(top * 1.25, 1e308))
    sizes = sorted(abs(v) for v in values if v)
    typical = sizes[len(sizes) // 2] if sizes else 1.0
    if low < 0.0 and sizes and sizes[-1] > _WIDE * typical:
        return Scale("symlog", low, high, max(sizes[len(sizes) // 20], sizes[-1] * 1e-12))
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Scale("linear", low - pad, high + pad) if math.isfinite(pad) else Scale("linear", low, high)
