"""What a run's steps looked like: loss, gradient norm, learning rate, what was done. The latest steps in full, the whole run thinned out.

The guards leave here what they read anyway; recording a step is a tuple and two appends, and a `StepRecord` is built only for whoever reads.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from instrument import json_lines
from instrument.by_optimizer import ByOptimizer

Outcome = Literal["stepped", "clipped", "zeroed", "skipped", "rolled-back"]
"""How a step ended: `zeroed` had non-finite gradient elements set to 0, `skipped` was left out, `rolled-back` was undone."""

MOST_RECORDS = 4096
"""Records of a whole run: a plot needs no more, and at some 200 bytes each they stay below a megabyte."""


class _OnItsWay:
    """A number that an accelerator was asked to send: `float` of it waits only if it has not arrived."""

    __slots__ = ("_event", "_value")

    def __init__(self, value: Tensor) -> None:
        self._value = value.detach().to("cpu", non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(value.device))

    def __float__(self) -> float:
        self._event.synchronize()  # type: ignore[no-untyped-call]
        return float(self._value)


_Row = tuple[int, "float | _OnItsWay | None", float | None, float | None, Outcome, float]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step, or one update by hand.

    `step` counts from 1; `loss` is the last one on which backward was called before it; `gradient_norm` the global norm before clipping, unscaled,
    which may be inf or nan; `learning_rate` the largest of the optimizer's groups; `seconds` the time since the run began.
    """

    step: int
    loss: float | None
    gradient_norm: float | None
    learning_rate: float | None
    outcome: Outcome
    seconds: float

    def as_json(self) -> str:
        """One line of timeline.jsonl: strict JSON, non-finite numbers as the strings "nan", "inf" and "-inf"."""
        document = {name: _written(value) for name, value in asdict(self).items()}
        return json.dumps(document, allow_nan=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> StepRecord:
        """The record of one line of timeline.jsonl; keys of later versions are ignored."""
        document: dict[str, Any] = json.loads(line)
        known = {name: document[name] for name in cls.__dataclass_fields__}
        for name in ("loss", "gradient_norm", "learning_rate", "seconds"):
            if known[name] is not None:
                known[name] = float(known[name])
        return cls(**known)


def _written(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class _Thinned:
    """Every item while there is room, then every second, every fourth: evenly spread over all that was ever added, never more than `room`."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._stride = 1
        self._seen = 0
        self.items: list[_Row] = []

    def add(self, row: _Row) -> None:
        if self._seen % self._stride == 0:
            if len(self.items) == self._room:
                del self.items[1::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self.items.append(row)
        self._seen += 1


class History:
    """The steps of a run, in order: iterate for the bounded timeline, `recent()` for the latest steps of one optimizer.

    Args:
        length: how many of the latest steps are kept in full, for each optimizer.

    Steps at which something was done or a number was not finite are kept before others: all of them up to half of `MOST_RECORDS`.
    """

    def __init__(self, length: int = 64) -> None:
        self._length = length
        self._began = time.perf_counter()
        room = (MOST_RECORDS - 2 * length) // 2 if length < MOST_RECORDS // 4 else MOST_RECORDS // 4
        self._ordinary = _Thinned(room)
        self._notable = _Thinned(room)
        self._rings: ByOptimizer[deque[_Row]] = ByOptimizer()
        self._by_hand: deque[_Row] = deque(maxlen=length)
        self._latest: deque[_Row] = deque(maxlen=length)
        self._latest_ring = self._by_hand
        self.loss: float | _OnItsWay | None = None
        """The latest loss; one on an accelerator is on its way to the host and is there once the step's norm has been read."""
        self.norm: float | None = None
        """The gradient norm of the step under way."""
        self.outcome: Outcome = "stepped"
        """What was done to the step under way."""

    def see_loss_on_device(self, loss: Tensor) -> None:
        """Send a loss of one element to the host without waiting for it: the step waits for its gradients anyway, after which it is there."""
        if loss.is_cuda and not torch.cuda.is_current_stream_capturing():
            self.loss = _OnItsWay(loss)

    def finish_step(self, step: int, optimizer: Optimizer | None, *, skipped: bool = False) -> None:
        """Record the step under way; `optimizer` is None for an update by hand."""
        outcome: Outcome = "skipped" if skipped and self.outcome != "rolled-back" else self.outcome
        loss, norm = self.loss, self.norm
        if norm is not None and loss is not None:
            loss = float(loss)  # the norm has been read, so whatever was computed before it has arrived
        row = (step, loss, norm, None if optimizer is None else learning_rate(optimizer), outcome, time.perf_counter() - self._began)
        ring = self._by_hand if optimizer is None else self._rings.get(id(optimizer))
        if ring is None:
            assert optimizer is not None  # updates by hand have a ring from the beginning
            ring = self._rings.put(optimizer, deque(maxlen=self._length))
        ring.append(row)
        self._latest.append(row)
        self._latest_ring = ring
        # x - x is 0 for finite numbers only; a loss still on its way is not asked
        ordinary = outcome == "stepped" and (norm is None or norm - norm == 0.0) and (type(loss) is not float or loss - loss == 0.0)
        (self._ordinary if ordinary else self._notable).add(row)
        self.loss, self.norm, self.outcome = None, None, "stepped"

    def leading_here(self) -> list[StepRecord]:
        """The latest steps of whatever stepped last, oldest first."""
        return [_record(row) for row in list(self._latest_ring)]

    def recent(self, optimizer: Optimizer | None = None) -> list[StepRecord]:
        """The latest steps of this optimizer, oldest first; without one, the latest updates by hand."""
        ring = self._by_hand if optimizer is None else self._rings.get(id(optimizer), ())
        return [_record(row) for row in list(ring)]

    def latest(self) -> StepRecord:
        """The step that was finished last. Raises IndexError before the first."""
        return _record(self._latest[-1])

    def __iter__(self) -> Iterator[StepRecord]:
        rows = {id(row): row for part in (self._ordinary.items, self._notable.items, self._latest) for row in list(part)}
        # `seconds` orders the steps that several optimizers take under one number
        return iter([_record(row) for row in sorted(rows.values(), key=lambda row: (row[0], row[5]))])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _record(row: _Row) -> StepRecord:
    step, loss, norm, rate, outcome, seconds = row
    return StepRecord(step, None if loss is None else float(loss), norm, rate, outcome, seconds)


def learning_rate(optimizer: Optimizer) -> float | None:
    """The largest learning rate of an optimizer's groups; None where it has none or only on an accelerator (reading it would wait)."""
    largest = None
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if rate.__class__ is not float:
            if isinstance(rate, Tensor):
                rate = float(rate) if rate.is_cpu and rate.numel() == 1 else None
            elif not isinstance(rate, int):
                rate = None
        if rate is not None and (largest is None or rate > largest or rate != rate):
            largest = rate
    return None if largest is None else float(largest)


def write_timeline(records: Iterable[StepRecord], path: Path) -> None:
    """Write one JSON object a line, replacing the file at once so that no half-written one is left."""
    json_lines.write(records, path)


def read_timeline(path: Path) -> list[StepRecord]:
    """The records of a file that `write_timeline` wrote.

    Raises:
        UsageError: the file is missing, or a line of it is no record; the message names the line.
    """
    return json_lines.read(path, StepRecord.from_json, "timeline", "a step")
