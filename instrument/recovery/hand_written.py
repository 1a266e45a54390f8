"""Which tensors a script that has optimizers updates by hand beside them."""

from __future__ import annotations

import math
import weakref

import torch
from torch import Tensor

from instrument.runtime import is_plain, without_function_modes


class HandWritten:
    """Which leaves that are no parameters a script updates by hand although it has optimizers.

    Data asks for a gradient too (a point of an equation, an image that is attacked). What is updated is the same tensor at the next pass, and holds
    other numbers: data is a new tensor, or holds the same ones.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Tensor], float]] = {}
        self._written: set[int] = set()

    def is_written(self, leaf: Tensor) -> bool:
        """Whether the script has written into this leaf between two passes that reached it; this pass is remembered."""
        if not is_plain(leaf):
            return False
        known = self._seen.get(id(leaf))
        is_known = known is not None and known[0]() is leaf
        if not is_known:
            self._seen = {key: seen for key, seen in self._seen.copy().items() if seen[0]() is not None}
            self._written.intersection_update(self._seen)
            self._written.discard(id(leaf))
        with torch.no_grad(), without_function_modes():
            total = leaf.detach().sum(dtype=torch.float64).item()
        if known is not None and is_known and math.isfinite(known[1]) and total != known[1]:
            self._written.add(id(leaf))
        self._seen[id(leaf)] = (weakref.ref(leaf), total)
        return id(leaf) in self._written
