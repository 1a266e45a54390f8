"""A loss scale that cannot be used (NS513): infinite, NaN, or so small that its reciprocal overflows.

A GradScaler only multiplies its scale. Inf halved is Inf, 0 doubled is 0: once there, every step is skipped, without a word and for ever. After an
update the scale is looked at, on an accelerator only if no step was taken since the last one (torch has read the overflow flag then, so nothing
is waited for), and now and then for optimizers that skip inside their kernel. An unusable scale is replaced by the last usable one that was
seen, or by `amp.init_scale`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.amp import GradScaler

from instrument.guards.base import Function, Spelling, is_compiling, mimic
from instrument.runtime import RUNTIME

if TYPE_CHECKING:
    from instrument.run import Run

SMALLEST = torch.finfo(torch.float32).smallest_normal
"""Below it 1 / scale overflows float32."""

LOOK_EVERY = 32


def spellings() -> list[Spelling]:
    """The one place where a scaler changes its scale."""
    return [Spelling(GradScaler, "update", "update")]


def stand_in(original: Function, spelling: Spelling) -> Function:
    """`update`, and a look at what it left."""

    @mimic(original, spelling)
    def update(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if RUNTIME.active and RUNTIME.run.policy.act and not is_compiling() and isinstance(args[0], GradScaler):
            RUNTIME.run.recovery.scales.look(RUNTIME.run, args[0])
        return result

    return update


class Scales:
    """The loss scales of a run, as far as they were usable."""

    def __init__(self) -> None:
        self._usable: WeakKeyDictionary[GradScaler, float] = WeakKeyDictionary()
        self._steps = 0
        self._updates = 0

    def look(self, run: Run, scaler: GradScaler) -> None:
        """Replace the scale if it cannot be used."""
        scale = scaler._scale
        if not scaler.is_enabled() or not isinstance(scale, Tensor):
            return
        steps, self._steps = self._steps, run.recovery.counters.taken
        self._updates += 1
        if not scale.is_cpu and steps != self._steps and self._updates % LOOK_EVERY:
            return
        value = scale.item()
        if math.isfinite(value) and value >= SMALLEST:
            self._usable[scaler] = value
            return
        replacement = max(self._usable.get(scaler, run.config.amp.init_scale), run.config.amp.min_scale)
        scale.fill_(replacement)
        message = f"the loss scale had become {value:g}, from which no update leads back; {replacement:g} was put there"
        run.note("NS513", "repaired", "loss scale", message=message)
