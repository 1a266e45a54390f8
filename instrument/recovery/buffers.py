"""Buffers (NS808): a batch that is not finite spoils running statistics in the forward pass, before the step that it is skipped for.

`running_mean = 0.9 * running_mean + 0.1 * nan` is NaN for ever: training goes on, every evaluation fails. So buffers are copied after a step
that went well and put back when they hold NaN or Inf.

- Running statistics of normalisation layers are never rightly infinite: they are put back whenever they are.
- Other buffers may be (a mask of -inf): they are put back after a step that failed, or if they have been changing from step to step so far,
  as a statistic does. One that turns infinite in a healthy step is taken to be meant.

Small ones are joined into one tensor, which is the copy and is looked at once. Large ones are copied when torch has seen a write to them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from instrument.recovery.training_objects import TrainingObjects
from instrument.runtime import is_plain, without_function_modes
from latent_drift.numerics.finite import is_finite

SMALL = 4096
"""Elements up to which a buffer is copied after every step, written to or not: a few microseconds."""

STATISTIC = 3
"""Healthy steps in which a buffer must have changed to be taken for a statistic."""

LOOKS = 16
"""Steps in which a small buffer is compared with its copy to learn whether it changes."""

_flattened = torch._C._nn.flatten_dense_tensors  # type: ignore[attr-defined]
_RESET = {"running_mean": 0.0, "running_var": 1.0}


class _Slot:
    """A buffer's place in its module: the tensor there may be exchanged for another at any time."""

    __slots__ = ("changes", "copy", "is_norm", "looks", "meant", "module", "name", "seen")

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = weakref.ref(module)
        self.name = name
        self.is_norm = isinstance(module, _NormBase) and name in _RESET
        self.copy: Tensor | None = None
        self.changes = 0
        self.looks = 0
        self.meant = False
        self.seen: tuple[int, int] | None = None

    def tensor(self) -> Tensor | None:
        module = self.module()
        return None if module is None else module._buffers.get(self.name)

    @property
    def is_learning(self) -> bool:
        return not self.is_norm and self.looks < LOOKS

    def learn(self, now: Tensor) -> None:
        """Compare the buffer with its copy, to know whether it changes from step to step."""
        if self.is_learning:
            self.looks += 1
            self.changes += self.copy is not None and self.copy.shape == now.shape and not torch.equal(self.copy, now)


class _Group:
    """Small buffers of one device and dtype. Their copy is one tensor, made and looked at with one operation each; a slot gets its part of it when
    that is asked for."""

    __slots__ = ("device", "dtype", "flat", "learning", "slots", "tensors")

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.slots: list[_Slot] = []
        self.tensors: list[Tensor] = []
        self.flat: Tensor | None = None
        self.learning = True

    def now(self) -> list[Tensor] | None:
        """The buffers as they are; None if one is gone, or is another tensor that cannot be joined with the others."""
        found = []
        known: Sequence[Tensor | None] = self.tensors or (None,) * len(self.slots)
        for slot, before in zip(self.slots, known, strict=True):
            tensor = slot.tensor()
            if tensor is None:
                return None
            if tensor is not before and not (is_plain(tensor) and tensor.dtype is self.dtype and tensor.device == self.device):
                return None
            found.append(tensor)
        return found

    def take(self, tensors: list[Tensor], flat: Tensor) -> None:
        """`flat`, the numbers of `tensors`, is the new copy."""
        if self.learning:
            self.hand_out()
            for slot, tensor in zip(self.slots, tensors, strict=True):
                slot.learn(tensor)
            self.learning = any(slot.is_learning for slot in self.slots)
        self.tensors, self.flat = tensors, flat

    def hand_out(self) -> None:
        """Give each slot its part of the copy."""
        if self.flat is not None:
            for slot, tensor, part in zip(self.slots, self.tensors, self.flat.split([t.numel() for t in self.tensors]), strict=True):
                slot.copy = part.view(tensor.shape)
            self.flat = None


class KeptBuffers:
    """The floating-point buffers of every module that was met, and what they held after the last good step."""

    def __init__(self, training: TrainingObjects) -> None:
        self._training = training
        self._generation = -1
        self._slots: dict[tuple[int, str], _Slot] = {}
        self._small: list[_Group] = []
        self._large: list[_Slot] = []

    def bytes(self) -> int:
        """Memory that the copies take."""
        joined = sum(group.flat.nbytes for group in self._small if group.flat is not None)
        return joined + sum(slot.copy.nbytes for slot in self._slots.values() if slot.copy is not None)

    def begin(self) -> None:
        """A closure is about to run forward passes inside a step: what modules hold that were met since the last look is copied before it."""
        if self._generation != self._training.generation:
            self.look(failed=False)

    def look(self, *, failed: bool) -> list[tuple[nn.Module, str]]:
        """Put back what has become NaN or Inf, and copy what is good; returns the places that were put back.

        Args:
            failed: the step under way was skipped or mended.
        """
        if self._generation != self._training.generation:
            self._plan()
        if not self._small and not self._large:
            return []
        restored: list[tuple[nn.Module, str]] = []
        with torch.no_grad(), without_function_modes():
            for group in self._small:
                restored += self._look_at_small(group, failed)
            for slot in self._large:
                restored += self._look_at_large(slot, failed)
        return restored

    def _plan(self) -> None:
        """Which buffers there are, in groups that can be joined; slots that are known keep their copies."""
        for group in self._small:
            group.hand_out()
        known, self._slots = self._slots, {}
        groups: dict[tuple[torch.device, torch.dtype], _Group] = {}
        self._large = []
        for module in self._training.modules():
            for name, buffer in module._buffers.items():
                if buffer is None or not is_plain(buffer) or not buffer.numel():
                    continue
                slot = known.get((id(module), name))
                if slot is None or slot.module() is not module:
                    slot = _Slot(module, name)
                    slot.meant = not slot.is_norm and not is_finite(buffer)  # infinite from the beginning: a mask
                self._slots[id(module), name] = slot
                if slot.meant:
                    continue
                if slot.is_norm or buffer.numel() <= SMALL:
                    kind = (buffer.device, buffer.dtype)
                    groups.setdefault(kind, _Group(*kind)).slots.append(slot)
                else:
                    self._large.append(slot)
        self._small = list(groups.values())
        self._generation = self._training.generation

    def _look_at_small(self, group: _Group, failed: bool) -> list[tuple[nn.Module, str]]:
        tensors = group.now()
        flat = None if tensors is None else _joined(tensors)
        if flat is not None and tensors is not None and _is_finite(flat):
            group.take(tensors, flat)
            return []
        group.hand_out()
        group.tensors = []
        restored = []
        for slot in group.slots:
            tensor = slot.tensor()
            if flat is None:
                self._generation = -1  # a module died, or a buffer was taken out or moved: plan anew at the next step
            if tensor is None or not is_plain(tensor):
                continue
            restored += self._judge(slot, failed)
            if not slot.meant and is_finite(tensor):
                slot.learn(tensor)
                slot.copy = tensor.detach().clone()
        return restored

    def _look_at_large(self, slot: _Slot, failed: bool) -> list[tuple[nn.Module, str]]:
        tensor = slot.tensor()
        if tensor is None or not is_plain(tensor):
            return []
        seen = (id(tensor), tensor._version)
        if seen == slot.seen and not failed:
            return []
        if not is_finite(tensor):
            slot.seen = None
            return self._judge(slot, failed)
        slot.changes += slot.seen is not None and seen != slot.seen
        # A constant is not worth its memory: the first write to it makes it worth a copy.
        if slot.changes:
            slot.copy = tensor.detach().clone()
        slot.seen = seen
        return []

    def _judge(self, slot: _Slot, failed: bool) -> list[tuple[nn.Module, str]]:
        """Put this buffer back if it is not finite and ought to be; one that is meant to be infinite is left alone from now on."""
        module, tensor = slot.module(), slot.tensor()
        if module is None or tensor is None or is_finite(tensor):
            return []
        if not slot.is_norm and not failed and slot.changes < STATISTIC:
            slot.meant = True
            self._generation = -1
            return []
        if slot.copy is not None and slot.copy.shape == tensor.shape and slot.copy.device == tensor.device:
            tensor.data.copy_(slot.copy)  # unseen by autograd: a graph that saved the buffer may still be waiting for its backward pass
        elif slot.is_norm:
            tensor.data.fill_(_RESET[slot.name])  # spoilt by the very first batch: as it was before any
        else:
            return []
        return [(module, slot.name)]


def _joined(tensors: list[Tensor]) -> Tensor | None:
    """All of them in one new tensor; None if they no longer are of one device."""
    if len(tensors) == 1:
        return tensors[0].detach().clone().reshape(-1)
    try:
        together: Tensor = _flattened(tensors)
    except RuntimeError:
        return None
    return together


def _is_finite(flat: Tensor) -> bool:
    """Whether every element is finite. On the CPU by the operation that measured the gradients a moment ago; its squares may overflow where no
    element does."""
    if flat.is_cpu and flat.dtype.itemsize > 2 and math.isfinite(torch.dot(flat, flat).item()):
        return True
    return is_finite(flat)
