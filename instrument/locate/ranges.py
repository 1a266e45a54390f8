"""How large the results of exponentials and powers were, step by step: where one overflows, what led there is known.

The guards of these operations look at their results anyway, so keeping a number is an append. Calls are told apart by their order within a step: the
line of one is only looked up where something was found.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from instrument.locate.trends import growth, rise

MOST_CALLS = 32
"""Calls of an operation in one step whose results are kept: a loop over time steps would fill the memory."""

ARGUMENT: dict[str, Callable[[float], float]] = {
    "exp": math.log,
    "exp2": math.log2,
    "expm1": math.log1p,
    "sinh": math.asinh,
    "cosh": math.acosh,
}
"""The largest argument, from the largest result; from the sum of all where that was looked at, it is at most log(n) more."""

LARGE = 1e15
"""A result that is on its way out of any dtype's range: float32 ends at 3.4e38, and squares and products come first."""

LEAST = {"exp": 1e-45, "exp2": 1e-45, "expm1": -0.999, "cosh": 1.0}
"""Results from which that can be told."""


_Sizes = defaultdict[str, list[float]]


class Ranges:
    """The largest results of the step under way (`now`, by operation, in order of the calls), and those of earlier steps that went well: the latest
    `length` of them, and as many spread evenly over the whole run."""

    __slots__ = ("_latest", "_length", "_steps", "_stride", "_whole", "now")

    def __init__(self, length: int) -> None:
        self.now: _Sizes = defaultdict(list)
        self._length = length
        self._latest: deque[tuple[int, _Sizes]] = deque(maxlen=length)
        self._whole: list[tuple[int, _Sizes]] = []
        self._stride = 1
        self._steps = 0

    def see(self, op: str, size: float) -> None:
        """Keep the size of a result."""
        sizes = self.now[op]
        if len(sizes) < MOST_CALLS:
            sizes.append(size)

    def step_finished(self, *, healthy: bool) -> None:
        """A step that failed says nothing about how it came to that."""
        self._steps += 1
        if not self.now:
            return
        if healthy:
            self._latest.append((self._steps, self.now))
            if self._steps % self._stride == 0:
                self._whole.append((self._steps, self.now))
                if len(self._whole) >= 2 * self._length:
                    del self._whole[::2]
                    self._stride *= 2
        self.now = defaultdict(list)

    def _sizes(self, op: str, steps: Sequence[tuple[int, _Sizes]], index: int | None = None) -> list[tuple[int, float]]:
        """What a call of an operation, the latest unless its index is given, gave in these steps (a copy of them: another thread may add one)."""
        index = index if index is not None else len(self.now[op]) - 1 if op in self.now else -1
        return [(step, sizes[op][index]) for step, sizes in list(steps) if index >= 0 and op in sizes and len(sizes[op]) > index]

    def argument_trend(self, op: str, largest: float, index: int | None = None) -> str | None:
        """How the largest argument of the latest call of an exponential came to be `largest`; None if it did not rise to it."""
        back = ARGUMENT.get(op)  # of an operation in place the argument itself was kept
        least = LEAST.get(op, -math.inf)
        for steps in (self._whole, self._latest):
            known = [(step, back(size) if back else size) for step, size in self._sizes(op, steps, index) if least <= size < math.inf]
            found = rise([*known, (self._steps + 1, largest)])
            if found is not None:
                return f"the largest argument of {op} here {found}"
        return None

    def latest_trend(self, op: str) -> str | None:
        """How the argument of an exponential came to be as large as in the latest step; None if it did not rise to it."""
        sizes = self._latest[-1][1].get(op) if self._latest else None
        back = ARGUMENT.get(op)
        if not sizes or back is None:
            return None
        index = max(range(len(sizes)), key=sizes.__getitem__)
        return self.argument_trend(op, back(sizes[index]), index) if LEAST.get(op, -math.inf) <= sizes[index] < math.inf else None

    def result_trend(self, op: str) -> str | None:
        """How the results of the latest call of a power came to overflow; None if they did not grow to it."""
        found = growth([size for _, size in self._sizes(op, self._latest)])
        return None if found is None else f"the results of {op} here {found}"

    def large_trend(self) -> str | None:
        """How an exponential of this step came to be so large that a product with it overflows, if that is how it came."""
        for op, sizes in list(self.now.items()):
            back = ARGUMENT.get(op)
            for index, size in enumerate(sizes):
                if back is not None and LARGE < size < math.inf and (found := self.argument_trend(op, back(size), index)) is not None:
                    return found
        return None
