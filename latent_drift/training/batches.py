"""Which items a step trains on: a function of seed and step, so that a resumed run needs no position and every process finds its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
from torch import Tensor

from latent_drift.errors import UsageError

_ORDER: Final = 1  # of the seed's children the one that orders; the data sets key theirs otherwise


class Data(Protocol):
    """Items that come in batches."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The items of these indices, stacked, on the CPU."""


class Batches:
    """The batches of a run: the data in a new random order each time through, cut into batches that run on over its end.

    Args:
        data: at least one item.
        batch_size: items of a step, over all processes.
        seed: of the orders.
        rank, ranks: which process this is, of how many; each takes its own run of `batch_size / ranks` rows.

    Raises:
        UsageError: no data, or a batch that the processes cannot share evenly.
    """

    def __init__(self, data: Data, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        if len(data) == 0:
            raise UsageError("--data has no items; nothing can be trained on")
        if batch_size % ranks:
            raise UsageError(f"--batch-size {batch_size} cannot be shared evenly by {ranks} processes; take a multiple of {ranks}")
        self._data, self._batch_size, self._seed = data, batch_size, seed
        self._rows = slice(rank * (batch_size // ranks), (rank + 1) * (batch_size // ranks))
        self._epoch = -1
        self._order: np.ndarray[Any, Any] = np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> list[int]:
        """The items of a step on all processes, in order."""
        first = step * self._batch_size
        return [self._item(position) for position in range(first, first + self._batch_size)]

    def at(self, step: int) -> tuple[Tensor, ...]:
        """This process's rows of the batch of a step."""
        return self._data.batch(self.indices(step)[self._rows])

    def _item(self, position: int) -> int:
        epoch, place = divmod(position, len(self._data))
        if epoch != self._epoch:
            sequence = np.random.SeedSequence(entropy=self._seed, spawn_key=(_ORDER, epoch))
            self._order = np.random.Generator(np.random.Philox(sequence)).permutation(len(self._data))
            self._epoch = epoch
        return int(self._order[place])
