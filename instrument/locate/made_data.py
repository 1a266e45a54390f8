"""Data that an operation of the script made bad before any step: a logarithm of a price of 0, a column divided by its own spread of 0.

Such a result is legal when it is made, and the steps that do not meet its bad rows go well. When one does, the data is at hand and the line that made
it is known from here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instrument.locate.births import Birth
from instrument.runtime import is_plain, without_function_modes

MOST_HELD = 16
LARGEST = 2**24  # elements: a tensor is kept alive for this
COMPARED, FEWEST = 64, 3  # numbers by which a copy is recognised: all of them occur in what it was copied from


class MadeData:
    """The first bad results of each line and operation that no gradient passes, with the births they came from."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, str], tuple[Tensor, Birth]] = {}

    def add(self, result: Tensor, birth: Birth) -> None:
        """Remember a result that has no graph."""
        place = (birth.site.file, birth.site.line, birth.op)
        if not result.requires_grad and place not in self._held and len(self._held) < MOST_HELD and result.numel() <= LARGEST:
            self._held[place] = (result.detach(), birth)

    def origin_of(self, x: Tensor) -> Birth | None:
        """The birth that bad data came from: that of the tensor that it is a part of, or copied from."""
        if not self._held or x.requires_grad:
            return None
        with torch.no_grad(), without_function_modes():
            for result, birth in self._held.values():
                if x.untyped_storage().data_ptr() == result.untyped_storage().data_ptr():
                    return birth
            finite = x.detach().flatten()
            finite = finite[torch.isfinite(finite)][:COMPARED]
            for result, birth in self._held.values():
                copied = is_plain(result) and result.dtype is x.dtype and finite.numel() > FEWEST and bool(torch.isin(finite, result).all())
                if copied and not bool(torch.isfinite(result).all()):
                    return birth
        return None
