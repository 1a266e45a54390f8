"""Which functions a block replaces, and whether a call went through one of the replacements."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import instrument
from instrument.guards import OPERATION_GUARDS, Spelling, backward

_GUARDS = str(Path(instrument.__file__).parent / "guards")


def spellings() -> list[Spelling]:
    """Every place where an operation is replaced."""
    return [s for guard in OPERATION_GUARDS for s in guard.spellings()] + backward.spellings()


class Current:
    """Finds for a function that was looked up outside a block what stands in its place now."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[Any, str]] = {}
        self._originals = []
        for spelling in spellings():
            original = getattr(spelling.owner, spelling.name)
            self._originals.append(original)
            self._places.setdefault(id(original), (spelling.owner, spelling.name))

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        place = self._places.get(id(function))
        found: Callable[..., Any] = function if place is None else getattr(*place)
        return found

    def is_replaced(self, function: Callable[..., Any]) -> bool:
        """True if a block replaces this very function."""
        return id(function) in self._places


class Reached:
    """Counts the entries into code of the guards, and of those of operations (every gradient passes the guard of `autograd.grad`)."""

    def __init__(self) -> None:
        self.count = 0
        self.operations = 0

    def _on_call(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        file = frame.f_code.co_filename
        if file.startswith(_GUARDS):
            self.count += 1
            self.operations += frame.f_code.co_name == "guarded" and not file.endswith("/backward.py")


@contextmanager
def watching() -> Iterator[Reached]:
    """A counter of stand-ins entered on this thread while it is open."""
    reached = Reached()
    before = sys.getprofile()
    sys.setprofile(reached._on_call)
    try:
        yield reached
    finally:
        sys.setprofile(before)


def identities() -> dict[str, int]:
    """The identity of every replaced attribute as it is now, and of `step` and `backward`: equal before and after a block."""
    found = {s.path: id(vars(s.owner).get(s.name, None)) for s in spellings()}
    for cls in (torch.optim.Optimizer, *torch.optim.Optimizer.__subclasses__()):
        found[f"{cls.__module__}.{cls.__qualname__}.step"] = id(vars(cls).get("step", None))
    return found
