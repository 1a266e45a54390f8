"""The objects that a training consists of, met without asking the script: modules, optimizers, schedulers, loss scalers.

Modules that are built inside a block are met as they register what they hold (torch's own registration hooks); everything built before it is
found once, among all objects, when the first backward is called.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.modules import module as registration
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from instrument.alive import instances_of, with_subclasses


class _WeakIdentitySet:
    """Objects by identity, not kept alive: a module may define equality and have no hash."""

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[Any]] = {}

    def add(self, value: Any) -> bool:
        """Add; returns whether it is new."""
        key = id(value)
        known = self._references.get(key)
        if known is not None and known() is value:
            return False
        references = self._references
        self._references[key] = weakref.ref(value, lambda dead: references.pop(key, None) if references.get(key) is dead else None)
        return True

    def __iter__(self) -> Iterator[Any]:
        return (value for reference in list(self._references.values()) if (value := reference()) is not None)


class TrainingObjects:
    """What a run has met. `generation` moves whenever a module is new, so that plans made from it know when they are old."""

    def __init__(self) -> None:
        self._modules = _WeakIdentitySet()
        self._schedulers = _WeakIdentitySet()
        self._scalers = _WeakIdentitySet()
        self.generation = 0
        self.searched = False

    def meet_module(self, module: nn.Module) -> None:
        """A module that registers something, or was found."""
        if self._modules.add(module):
            self.generation += 1

    def meet_scheduler(self, scheduler: LRScheduler) -> None:
        """A scheduler that steps, or was found."""
        self._schedulers.add(scheduler)

    def meet_scaler(self, scaler: GradScaler) -> None:
        """A loss scaler that scales, or was found."""
        self._scalers.add(scaler)

    def search(self) -> list[Optimizer]:
        """Meet whatever exists by now; returns the optimizers. It walks over all objects, so it is done once."""
        self.searched = True
        wanted = {cls for root in (nn.Module, Optimizer, LRScheduler, GradScaler) for cls in with_subclasses(root)}
        optimizers = []
        for found in instances_of(wanted):
            if isinstance(found, nn.Module):
                # One whose __init__ never ran holds nothing.
                if "_parameters" in vars(found):
                    self.meet_module(found)
            elif isinstance(found, Optimizer):
                optimizers.append(found)
            elif isinstance(found, LRScheduler):
                self.meet_scheduler(found)
            else:
                self.meet_scaler(found)
        return optimizers

    def modules(self) -> list[nn.Module]:
        """Every module that is alive, the parts among them."""
        return list(self._modules)

    def roots(self, parameters: Iterable[Tensor]) -> list[nn.Module]:
        """The outermost modules that hold any of these parameters."""
        wanted = {id(p) for p in parameters}
        candidates = [m for m in self._modules if any(id(p) in wanted for p in m.parameters())]
        inner = {id(child) for m in candidates for child in m.modules() if child is not m}
        return [m for m in candidates if id(m) not in inner]

    def schedulers(self, optimizers: Iterable[Optimizer]) -> list[LRScheduler]:
        """The schedulers of these optimizers; those inside a SequentialLR or ChainedScheduler are part of its own state."""
        known = {id(optimizer) for optimizer in optimizers}
        found = [s for s in self._schedulers if id(getattr(s, "optimizer", None)) in known]
        inner = {id(part) for s in found for part in getattr(s, "_schedulers", ())}
        return [s for s in found if id(s) not in inner]

    def scalers(self) -> list[GradScaler]:
        """The loss scalers that are in use."""
        return [s for s in self._scalers if s.is_enabled() and s._scale is not None]


def watch_registration(meet: Any) -> list[RemovableHandle]:
    """Call `meet(module)` whenever a module registers a parameter, a buffer or a part; returns the handles that end it."""

    def registered(module: nn.Module, name: str, value: Any) -> None:
        if not torch.compiler.is_compiling():
            meet(module)

    return [
        registration.register_module_buffer_registration_hook(registered),
        registration.register_module_parameter_registration_hook(registered),
        registration.register_module_module_registration_hook(registered),
    ]
