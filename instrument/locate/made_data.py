"""Data that an operation of the script made bad before any step: a logarithm of a price of 0, a column divided by its own spread of 0.

Such a result is legal when it is made, and the steps that do not meet its bad rows go well. When one does, the data is at hand and the line that made
it is known from here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instrument.events import Site
from instrument.locate.births import Birth
from instrument.locate.origin import named_tensors
from instrument.runtime import is_plain, is_readable, without_function_modes

MOST_HELD = 16
LARGEST = 2**24  # elements: a tensor is kept alive for this
COMPARED, FEWEST = 64, 3  # numbers by which a copy is recognised: all of them occur in what it was copied from


class MadeData:
    """The first bad results of each line and operation that no gradient passes, with the births they came from."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, str], tuple[Tensor, Birth]] = {}
        self._latest: dict[tuple[str, int, str], tuple[Tensor, Birth]] = {}
        self._met: list[Tensor] = []

    def add(self, result: Tensor, birth: Birth) -> None:
        """Remember a result that has no graph."""
        place = (birth.site.file, birth.site.line, birth.op)
        if not result.requires_grad and place not in self._held and len(self._held) < MOST_HELD and result.numel() <= LARGEST:
            self._held[place] = (result.detach(), birth)

    def renew(self, result: Tensor, site: Site, op: str) -> None:
        """A line that gave bad results in steps that went well did so again: the latest is kept too, for a state that moves on from it."""
        known = self._held.get((site.file, site.line, op))
        if known is not None and not result.requires_grad and result.numel() <= LARGEST:
            self._latest[site.file, site.line, op] = (result.detach(), known[1])

    def meet(self, birth: Birth) -> None:
        """This birth is the cause: what it gave is the data to mend, if it is held."""
        known = self._held.get((birth.site.file, birth.site.line, birth.op))
        if known is not None and known[1] is birth:
            self._met.append(known[0])

    def origin_of(self, x: Tensor) -> Birth | None:
        """The birth that bad data came from: that of the tensor that it is a part of, or copied from."""
        if not self._held or x.requires_grad:
            return None
        held = [*self._held.values(), *self._latest.values()]
        with torch.no_grad(), without_function_modes():
            for result, birth in held:
                if _shares_memory(x, result):
                    self._met.append(result)
                    return birth
            for result, birth in held:
                if is_copied_from(x, result) and not bool(torch.isfinite(result).all()):
                    self._met.append(result)
                    return birth
        return None

    def origin_within(self, table: Tensor) -> Birth | None:
        """The birth of a part of a table, the other way round: of one of the rows or columns that were put together in it."""
        with torch.no_grad(), without_function_modes():
            for result, birth in list(self._held.values()):
                if is_plain(result) and _is_part_of(result, table) and not bool(torch.isfinite(result).all()):
                    return birth
        return None

    def mend(self) -> int:
        """Set what is not finite to 0 in the results that bad data was found to come from, and in the script's variables that were copied from them:
        every step that meets it fails. Returns how many numbers.

        Written through `.data`: a graph that is about to be differentiated may hold them, and autograd is not to see a write.
        """
        mended = 0
        with torch.no_grad(), without_function_modes():
            for result in self._met:
                copies = [value for _, value, _ in named_tensors() if not value.requires_grad and is_taken_from(value, result)]
                for value in (*copies, result):
                    bad = ~torch.isfinite(value)
                    mended += int(bad.sum())
                    value.data.masked_fill_(bad, 0.0)
        self._met.clear()
        return mended


def _is_part_of(result: Tensor, table: Tensor) -> bool:
    """Whether the finite numbers of `result`, two of them at least and not all whole ones, occur in `table`."""
    finite = result.flatten()
    finite = finite[torch.isfinite(finite)][:COMPARED]
    if finite.numel() < 2 or table.device != finite.device or bool((finite == finite.round()).all()):
        return False
    return bool(torch.isin(finite.to(table.dtype), table.detach()).all())


def is_taken_from(x: Tensor, table: Tensor) -> bool:
    """Whether `x` is a part of `table`, or, by its finite numbers, copied from it."""
    return _shares_memory(x, table) or is_copied_from(x, table)


def _shares_memory(x: Tensor, table: Tensor) -> bool:
    return is_readable(x) and is_readable(table) and x.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()


def is_copied_from(x: Tensor, table: Tensor) -> bool:
    """Whether all of the finite numbers of `x`, up to `COMPARED`, occur in `table`; False where there are too few of them to tell."""
    if not (is_plain(x) and is_plain(table) and table.dtype is x.dtype and table.device == x.device):
        return False
    finite = x.detach().flatten()
    finite = finite[torch.isfinite(finite)][:COMPARED]
    return finite.numel() > FEWEST and bool(torch.isin(finite, table.detach()).all())
