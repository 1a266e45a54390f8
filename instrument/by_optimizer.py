"""What a run remembers of each optimizer, without keeping it alive."""

from __future__ import annotations

import weakref
from typing import TypeVar

from torch.optim import Optimizer

T = TypeVar("T")


class ByOptimizer(dict[int, T]):
    """A dictionary by `id(optimizer)`, filled with `put`: an entry goes with its optimizer, so that no other one that gets its id finds it.

    A WeakKeyDictionary answers the same questions in Python code of its own; here a look at every step is one call of `get(id(optimizer))`.
    """

    __slots__ = ("__weakref__", "_references")

    def __init__(self) -> None:
        super().__init__()
        self._references: dict[int, weakref.ref[Optimizer]] = {}

    def put(self, optimizer: Optimizer, value: T) -> T:
        """Remember `value`, which is returned."""
        key = id(optimizer)
        if key not in self._references:
            entries, references = weakref.ref(self), self._references

            def forget(dead: weakref.ref[Optimizer]) -> None:
                references.pop(key, None)
                mine = entries()
                if mine is not None:
                    mine.pop(key, None)

            references[key] = weakref.ref(optimizer, forget)
        self[key] = value
        return value

    def forget(self, optimizer: Optimizer) -> None:
        """Remember nothing of this optimizer."""
        self.pop(id(optimizer), None)

    def optimizers(self) -> list[Optimizer]:
        """Those that something is remembered of and that are alive, in the order in which they were met."""
        return [optimizer for key, reference in list(self._references.items()) if key in self and (optimizer := reference()) is not None]
