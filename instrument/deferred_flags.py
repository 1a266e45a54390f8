"""Flags that guards leave on their device, read together once a step: a read for each operation would make the processor wait for the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from instrument.events import Action, Site

MOST_FLAGS = 4096  # a loop without steps must not collect without end


@dataclass(frozen=True, slots=True)
class Flag:
    """A one-element bool tensor, and what it means if it is set."""

    value: Tensor
    code: str
    action: Action
    op: str
    site: Site | None
    dtype: str
    shape: tuple[int, ...]

    @property
    def message(self) -> str:
        """Its range is not known: reading it would have been the transfer that is avoided."""
        return f"{self.op} on {self.dtype}{list(self.shape)}: found on the device"


class DeferredFlags:
    """The flags of the step that is under way."""

    def __init__(self) -> None:
        self.pending: list[Flag] = []
        self._lock = threading.RLock()  # a signal's handler may write the report on the thread that holds it

    def add(self, flag: Flag) -> bool:
        """Keep one; returns whether there are so many that they should be read now."""
        self.pending.append(flag)
        return len(self.pending) >= MOST_FLAGS

    def take_set(self) -> Iterator[Flag]:
        """Forget all flags and give those that are set, with one transfer for each device."""
        with self._lock:
            pending, self.pending = self.pending, []
        by_device: dict[torch.device, list[Flag]] = {}
        for flag in pending:
            by_device.setdefault(flag.value.device, []).append(flag)
        for flags in by_device.values():
            for flag, is_set in zip(flags, torch.stack([f.value for f in flags]).tolist(), strict=True):
                if is_set:
                    yield flag
