"""Learning-rate schedules by name: constant, warmed-up cosine, and torch's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Final

import torch
from torch.optim import lr_scheduler

from latent_drift.errors import UsageError
from latent_drift.models.raccoon_steps import warmed_cosine
from latent_drift.training.arguments import require_fit
from latent_drift.training.names import did_you_mean

CONSTANT: Final = "constant"
WARMUP_COSINE: Final = "warmup-cosine"
"""Up a line over the first twentieth of the steps, then down a half cosine to 0."""

_NEED_OBJECTS: Final = ("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
"""What no key=value can build."""

_SUPPLIED: Final = ("optimizer", "last_epoch")


@cache
def catalogue() -> dict[str, type[lr_scheduler.LRScheduler]]:
    """torch's schedules that numbers can build."""
    kinds = {name: getattr(lr_scheduler, name) for name in dir(lr_scheduler) if not name.startswith("_")}
    return {
        name: kind
        for name, kind in kinds.items()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler) and name not in _NEED_OBJECTS
    }


def names() -> list[str]:
    """All names, ours first."""
    return [CONSTANT, WARMUP_COSINE, *catalogue()]


def canonical_name(name: str) -> str:
    """The spelling of a name, whatever its case.

    Raises:
        UsageError: there is no such schedule; the nearest are named.
    """
    known = {entry.lower(): entry for entry in names()}
    word = name.strip().lower().removeprefix("torch.optim.lr_scheduler.")
    if word not in known:
        raise UsageError(f"--scheduler {name}: no such schedule. {did_you_mean(name, names())}\n  known: {', '.join(names())}")
    return known[word]


def follows_length(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the schedule was laid out over the run's number of steps and cannot be laid out anew in the middle."""
    return name in catalogue() and bool(set(_lengths(name, 1)) - set(arguments))


def _lengths(name: str, steps: int) -> dict[str, int]:
    """Arguments that are the run's number of steps unless they are given."""
    argument = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps", "PolynomialLR": "total_iters"}.get(name)
    return {} if argument is None else {argument: max(1, steps)}


def require_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the schedule does not have, and the lack of those it needs.

    Raises:
        UsageError: naming them.
    """
    if name not in catalogue():
        if arguments:
            raise UsageError(f"--sched {', '.join(arguments)}: the schedule {name} has no arguments; leave --sched out")
        return
    filled = [argument for argument in (*_lengths(name, 1), *_rates(name, 0.0)) if argument not in arguments]
    require_fit(f"schedule {name}", "--sched", catalogue()[name], arguments, supplied=(*_SUPPLIED, *filled))


def _rates(name: str, lr: float) -> dict[str, float]:
    """Arguments that are the optimizer's own rate unless they are given."""
    return {"max_lr": lr} if name == "OneCycleLR" else {}


class Schedule:
    """The learning rate of an optimizer over a run.

    Args:
        name: of `names()`, in any case.
        arguments: its arguments. CosineAnnealingLR, OneCycleLR and PolynomialLR are laid out over the whole run unless they say otherwise.
        optimizer: whose rate it sets.
        steps: of the whole run.

    Raises:
        UsageError: no such name or argument, or a value that the schedule refuses.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], optimizer: torch.optim.Optimizer, steps: int) -> None:
        self.name = canonical_name(name)
        require_arguments(self.name, arguments)
        self._optimizer = optimizer
        self._scheduler: lr_scheduler.LRScheduler | None = None
        if self.name != CONSTANT and math.isnan(self.rate):
            raise UsageError(
                f"--scheduler {self.name}: the optimizer {type(optimizer).__name__} has no learning rate to schedule; add --scheduler {CONSTANT}"
            )
        if self.name == WARMUP_COSINE:
            self._scheduler = lr_scheduler.LambdaLR(optimizer, partial(_share, steps=steps))
        elif self.name != CONSTANT:
            filled = {**_lengths(self.name, steps), **_rates(self.name, self.rate), **arguments}
            try:
                self._scheduler = catalogue()[self.name](optimizer, **filled)
                _try(catalogue()[self.name], filled, self.rate)
            except Exception as error:  # some fifteen classes, given what somebody typed
                given = ", ".join(f"{key}={value!r}" for key, value in filled.items())
                advice = " Add --sched cycle_momentum=False." if "cycle_momentum" in str(error) else " Change --sched."
                raise UsageError(f"--scheduler {self.name} with {given}: {str(error).rstrip('.') or type(error).__name__}.{advice}") from error

    @property
    def rate(self) -> float:
        """The learning rate of the next step; NaN where the optimizer has none."""
        rate = self._optimizer.param_groups[0].get("lr")
        return math.nan if rate is None else float(rate)

    def advance(self, loss: float) -> None:
        """After a step that was taken, and had this loss (which ReduceLROnPlateau looks at)."""
        if isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(loss)
        elif self._scheduler is not None:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the optimizer's own state holds the rate."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state)


def _try(kind: type[lr_scheduler.LRScheduler], arguments: Mapping[str, Any], rate: float) -> None:
    """Let a schedule of these arguments take a step somewhere else: some values are refused only there."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate, momentum=0.5)
    scheduler = kind(optimizer, **arguments)
    optimizer.step()
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    else:
        scheduler.step()


def _share(step: int, steps: int) -> float:
    return warmed_cosine(step, steps)
