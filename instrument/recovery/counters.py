"""Schedules and averages wait for a step that was skipped.

A learning rate schedule advances with the training. Where every optimizer step since a scheduler's last call was skipped, nothing was trained,
so its next call is left out; where at least one was taken (a schedule by epochs), it advances. The same holds for
`torch.optim.swa_utils.AveragedModel.update_parameters`: an average counts states of the training, and a skipped step is no new one. What a script
averages by hand, or a schedule that it writes into the groups itself, is not seen.

A step that a GradScaler skips in its search for a scale is the script's own: torch advances the schedule there, and so it is left.
`recovery.hold_counters` turns this off.
"""

from __future__ import annotations

import weakref
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from instrument.by_optimizer import ByOptimizer
from instrument.guards.base import Function, Spelling, is_compiling, mimic
from instrument.runtime import RUNTIME


class Counters:
    """How many steps each optimizer took and had skipped, and how many of them each schedule and average has counted."""

    def __init__(self) -> None:
        self._steps: ByOptimizer[list[int]] = ByOptimizer()  # taken, skipped
        self._counted: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()
        self._averaged: WeakKeyDictionary[nn.Module, weakref.ref[Optimizer]] = WeakKeyDictionary()
        self.held = 0
        self.taken = 0
        """Steps of all optimizers together."""

    def step_finished(self, optimizer: Optimizer, *, skipped: bool) -> None:
        """Count a step."""
        counts = self._steps.get(id(optimizer))
        if counts is None:
            counts = self._steps.put(optimizer, [0, 0])
        counts[skipped] += 1
        self.taken += not skipped

    def rolled_back(self, optimizer: Optimizer) -> None:
        """The state is that of right after a step, before the script's call of its scheduler: that call is to come."""
        taken, left_out = self._steps.get(id(optimizer), (0, 0))
        self._steps.put(optimizer, [taken + 1, left_out])

    def holds(self, counter: Any, optimizer: Optimizer) -> bool:
        """Whether this call of a schedule or an average is to be left out: all steps since its last one were skipped."""
        taken, left_out = self._steps.get(id(optimizer), (0, 0))
        before = self._counted.get(counter)
        if before is not None and taken == before[0] and left_out > before[1]:
            self.held += 1
            return True
        self._counted[counter] = (taken, left_out)
        return False

    def optimizer_of(self, average: nn.Module, model: nn.Module) -> Optimizer | None:
        """The optimizer that has stepped and holds a parameter of the model that is averaged."""
        known = self._averaged.get(average)
        if known is not None and (optimizer := known()) is not None:
            return optimizer
        own = {id(p) for p in model.parameters()}
        for optimizer in self._steps.optimizers():
            if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
                self._averaged[average] = weakref.ref(optimizer)
                return optimizer
        return None


def spellings() -> list[Spelling]:
    """Where a schedule counts: the base class's `_update_lr`, below its warnings (which name the caller of `step`), and torch's own classes that
    have a `step` of their own."""
    found = [Spelling(AveragedModel, "update_parameters", "average")]
    if "_update_lr" in vars(LRScheduler):
        found.append(Spelling(LRScheduler, "_update_lr", "schedule"))
    else:
        found.append(Spelling(LRScheduler, "step", "schedule"))
    own = [c for c in vars(lr_scheduler).values() if isinstance(c, type) and issubclass(c, LRScheduler) and c is not LRScheduler]
    return found + [Spelling(cls, "step", "schedule") for cls in dict.fromkeys(own) if "step" in vars(cls)]


def stand_in(original: Function, spelling: Spelling) -> Function:
    """What replaces each of them."""
    return (_average if spelling.op == "average" else _schedule)(original, spelling)


def _schedule(original: Function, spelling: Spelling) -> Function:
    @mimic(original, spelling)
    def step(self: LRScheduler, *args: Any, **kwargs: Any) -> Any:
        if RUNTIME.active and not is_compiling():
            run = RUNTIME.run
            run.recovery.training.meet_scheduler(self)
            optimizer = getattr(self, "optimizer", None)
            # The first call comes from the constructor, and an explicit epoch is the script's own word.
            counts = run.recovery.holds_counters and not getattr(self, "_is_initial", False) and not _names_its_epoch(self, args, kwargs)
            if counts and isinstance(optimizer, Optimizer) and run.recovery.counters.holds(self, optimizer):
                return None
        return original(self, *args, **kwargs)

    return step


def _names_its_epoch(scheduler: LRScheduler, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    before = 1 if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else 0  # the metric comes first there
    return kwargs.get("epoch", args[before] if len(args) > before else None) is not None


def _average(original: Function, spelling: Spelling) -> Function:
    @mimic(original, spelling)
    def update_parameters(self: AveragedModel, model: nn.Module) -> Any:
        if RUNTIME.active and not is_compiling():
            run = RUNTIME.run
            optimizer = run.recovery.counters.optimizer_of(self, model) if run.recovery.holds_counters else None
            if optimizer is not None and run.recovery.counters.holds(self, optimizer):
                return None
        return original(self, model)

    return update_parameters
