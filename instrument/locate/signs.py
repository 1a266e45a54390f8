"""Warning signs of a step that went through: a loss that jumped (NS510), a gradient far above its own past (NS507), gradients that are all 0 (NS511).

They are measured against the run's own history, since no number alone tells: a loss that is a sum has a gradient norm of thousands all its life.
A sign needs more than a ratio to the middle of the past: it must leave the largest of the latest steps far behind too, so that the noise of
small batches, of reinforcement learning and of two networks that play against each other is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from instrument.by_optimizer import ByOptimizer
from instrument.history import History, StepRecord

LEAST_PAST = 16  # steps before which nothing is a jump: the first ones fall steeply
BEYOND_LARGEST = 3.0
NEVER_LEARNED = 10  # steps from the first on without any gradient: nothing has moved yet
FORGET = 0.9  # a step: the level against which a step is cheaply compared before its past is read


@dataclass(frozen=True, slots=True)
class Sign:
    """One warning: the finding's code and what was seen."""

    code: str
    message: str


class _Level:
    """What one optimizer's latest steps were like, roughly."""

    __slots__ = ("loss", "norm", "seen", "zeros")

    def __init__(self) -> None:
        self.seen = 0
        self.zeros = 0
        self.loss = math.inf
        self.norm = math.inf


class Signs:
    """Compares each step with the past of its optimizer: a few comparisons of floats, and a look at the history only where they are exceeded."""

    def __init__(self, *, spike_ratio: float, warn_norm: float, dead_steps: int, checks: Sequence[str]) -> None:
        self._ratio = spike_ratio
        self._warn_norm = warn_norm
        self._dead_steps = dead_steps
        self._spikes = "spike" in checks
        self._dead = "dead" in checks
        self._levels: ByOptimizer[_Level] = ByOptimizer()

    def look(self, optimizer: Optimizer, loss: float | None, norm: float | None, history: History) -> Sign | None:
        """The sign that this step gives, if any; it is the latest in `history`."""
        level = self._levels.get(id(optimizer))
        if level is None:
            level = self._levels.put(optimizer, _Level())
        level.seen += 1
        sign: Sign | None = None
        if norm is not None and math.isfinite(norm):
            if norm == 0.0:
                level.zeros += 1
                if self._dead and level.zeros in (self._dead_steps, NEVER_LEARNED if level.zeros == level.seen else self._dead_steps):
                    sign = Sign("NS511", f"every gradient was exactly 0 for {level.zeros} steps in a row: nothing was learned in them")
            else:
                level.zeros = 0
            if norm > self._warn_norm and norm > self._ratio * level.norm and level.seen > LEAST_PAST:
                sign = self._grown("NS507", "gradient norm", norm, [r.gradient_norm for r in history.recent(optimizer)[:-1]]) or sign
            level.norm = norm if level.norm == math.inf or norm > level.norm else FORGET * level.norm + (1.0 - FORGET) * norm
        if loss is not None and math.isfinite(loss):
            if loss > BEYOND_LARGEST * level.loss > 0.0 and level.seen > LEAST_PAST and self._spikes:
                sign = self._spiked(loss, history.recent(optimizer)[:-1]) or sign
            level.loss = loss if level.loss == math.inf or loss > level.loss else FORGET * level.loss + (1.0 - FORGET) * loss
        return sign

    def _spiked(self, loss: float, past: Sequence[StepRecord]) -> Sign | None:
        losses = [r.loss for r in past if r.loss is not None and math.isfinite(r.loss)]
        # A loss that is negative now and then has no ratio; one that has come down to rounding may double in rounding.
        if len(losses) < LEAST_PAST or min(losses) <= 0.0 or loss < 1e-3 * losses[0]:
            return None
        return self._grown("NS510", "loss", loss, losses)

    def _grown(self, code: str, name: str, value: float, past: Sequence[float | None]) -> Sign | None:
        known = [v for v in past if v is not None and math.isfinite(v)]
        if len(known) < LEAST_PAST or not math.isfinite(value):
            return None
        middle = statistics.median(known)
        if value <= self._ratio * middle or value <= BEYOND_LARGEST * max(known):
            return None
        times = f"{value / middle:.3g} times the median" if middle > 0.0 else "a median of 0"
        return Sign(code, f"the {name} is {value:.4g}: {times} of the last {len(known)} steps ({middle:.4g}), whose largest was {max(known):.4g}")
