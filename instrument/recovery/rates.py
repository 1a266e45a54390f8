"""Learning rates (NS512): one that cannot be used is replaced for the step, and one that was backed off is multiplied for the step.

Nothing is written into a group for longer than the step takes: a scheduler that computes its next rate from the current one, and one that
assigns it anew, both find the rate that they left. So a backoff is neither undone by an assignment nor compounded by a chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from instrument.by_optimizer import ByOptimizer
from latent_drift.config import StabilityConfig

ROUNDING = 1e-6
"""A negative rate below this share of the largest one seen is a schedule's rounding at its end, no ascent."""

LARGEST = 1e30
"""A learning rate from which torch's own optimizers raise instead of stepping: divided by Adam's first bias correction it overflows float32."""

REDUCED = 0.1
"""What remains for the next step of a rate whose update ended in NaN or Inf, if none has gone well."""

Lent = list[tuple[dict[str, Any], Any, Any]]
"""What a step was lent: the group, the rate that it had, the rate that it has."""


@dataclass(slots=True)
class Backoff:
    """A factor below 1 that returns to 1, linearly, over `steps` good steps."""

    start: float
    steps: int
    good: int = 0

    @property
    def factor(self) -> float:
        """What the learning rate is multiplied by now."""
        return 1.0 if self.good >= self.steps else self.start + (1.0 - self.start) * self.good / self.steps


@dataclass(frozen=True, slots=True)
class Unusable:
    """A learning rate that cannot be used: `given`, and `used` in its place (None: there was no usable one before)."""

    given: float
    used: float | None


class Rates:
    """The learning rates of a run's optimizers as their steps may use them."""

    def __init__(self, config: StabilityConfig) -> None:
        self._nonfinite = config.recovery.nonfinite_lr
        self._negative = config.recovery.negative_lr
        self._act = config.act
        self._usable: ByOptimizer[dict[int, float]] = ByOptimizer()
        self._before: WeakKeyDictionary[Optimizer, dict[int, float]] = WeakKeyDictionary()
        self._ceilings: WeakKeyDictionary[Optimizer, float] = WeakKeyDictionary()
        self._smaller: WeakKeyDictionary[Optimizer, float] = WeakKeyDictionary()  # to be tried where no rate has gone well before
        self.backoff: Backoff | None = None
        """What the rates are multiplied by while they return to their own values after a rollback."""

    @property
    def factor(self) -> float:
        """What every learning rate is multiplied by now; 1 where nothing was backed off."""
        return 1.0 if self.backoff is None else self.backoff.factor

    def back_off(self, start: float, steps: int) -> None:
        """Multiply every rate by `start` from now on, and by more from good step to good step, until 1 after `steps` of them."""
        self.backoff = Backoff(start, max(steps, 1))

    def step_went_well(self) -> None:
        """One good step nearer to the rate's own value."""
        if self.backoff is not None:
            self.backoff.good += 1
            if self.backoff.good >= self.backoff.steps:
                self.backoff = None

    def lend(self, optimizer: Optimizer) -> tuple[Lent, list[Unusable]]:
        """Set the rates that this step is to use; returns what `take_back` needs, and what was unusable."""
        usable = self._usable.get(id(optimizer))
        if usable is None:
            usable = self._usable.put(optimizer, {})
        ceiling = self._ceilings.get(optimizer, LARGEST) if self._ceilings else LARGEST
        lent: Lent = []
        found: list[Unusable] = []
        backoff = self.backoff
        for index, group in enumerate(optimizer.param_groups):
            given = group.get("lr")
            if given.__class__ is float and 0.0 <= given < ceiling:
                if given != usable.get(index):
                    self._remember(optimizer, usable, index, given)
                if backoff is None:
                    continue
            rate = _number(given)
            if rate is None:
                continue
            smaller = self._smaller.get(optimizer) if ceiling < LARGEST else None
            used = self._used(rate, usable.get(index, smaller), ceiling)
            if used != rate:  # a NaN differs from everything
                found.append(Unusable(rate, used))
            elif rate >= 0.0 and rate != usable.get(index):
                self._remember(optimizer, usable, index, rate)
            if self._act and used is not None and (used != rate or backoff is not None):
                value = used * (1.0 if backoff is None else backoff.factor)
                new = torch.full_like(given, value) if isinstance(given, Tensor) else value
                group["lr"] = new
                lent.append((group, given, new))
        return lent, found

    def refuse(self, optimizer: Optimizer, growth: float = math.nan) -> None:
        """The rate of the step under way made the update explode: from now on it, and any larger one, counts as unusable.

        Args:
            growth: how many times as large the update made the parameters, where that is known.
        """
        rates = [rate for group in optimizer.param_groups if (rate := _number(group.get("lr"))) is not None]
        ceiling = self._ceilings[optimizer] = min(max(rates, default=LARGEST), self._ceilings.get(optimizer, LARGEST))
        if ceiling < LARGEST:
            self._smaller[optimizer] = ceiling / growth if 1.0 < growth < math.inf else ceiling * REDUCED
        usable, before = self._usable.get(id(optimizer), {}), self._before.get(optimizer, {})
        for index, rate in list(usable.items()):
            if rate >= self._ceilings[optimizer]:
                del usable[index]
                if index in before:
                    usable[index] = before[index]

    def _remember(self, optimizer: Optimizer, usable: dict[int, float], index: int, rate: float) -> None:
        if index in usable:
            self._before.setdefault(optimizer, {})[index] = usable[index]
        usable[index] = rate

    def _used(self, rate: float, last: float | None, ceiling: float) -> float | None:
        if not math.isfinite(rate) or rate >= ceiling:
            return last if self._nonfinite == "last" else None
        if rate < 0.0 and self._negative == "zero" and -rate > ROUNDING * (last or 0.0):
            return 0.0
        return rate

    @staticmethod
    def take_back(lent: Lent) -> None:
        """The step is over: every group has its own rate again, unless the step itself set another."""
        for group, given, new in lent:
            if group.get("lr") is new:
                group["lr"] = given


def _number(rate: Any) -> float | None:
    """A rate's value; None where there is none, or reading it would wait for an accelerator."""
    if isinstance(rate, Tensor):
        return float(rate) if rate.is_cpu and rate.numel() == 1 else None
    return float(rate) if isinstance(rate, int | float) else None
