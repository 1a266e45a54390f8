"""Batches for the training functions: from a loader, a data set, or anything that can be iterated again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from torch.utils.data import DataLoader, Dataset

from latent_drift.errors import UsageError

DEFAULT_BATCH: Final = 32


def loader_of(data: Iterable[Any] | Dataset[Any], batch_size: int | None, shuffle: bool) -> Iterable[Any]:
    """`data` itself where it gives batches, a DataLoader over it where it is a data set.

    Raises:
        UsageError: a batch size for something that has one already.
    """
    # A DataLoader can be iterated and has no items; a data set has items, and may define __iter__ besides.
    if isinstance(data, DataLoader) or not hasattr(data, "__getitem__") or isinstance(data, (list, tuple)):
        if batch_size is not None:
            raise UsageError("batch_size is for data sets; this is a loader, which has its own")
        return data  # type: ignore[return-value]
    size = DEFAULT_BATCH if batch_size is None else batch_size
    return DataLoader(data, batch_size=size, shuffle=shuffle and len(data) > 0)  # type: ignore[arg-type]


def endless(loader: Iterable[Any], owner: str) -> Iterator[Any]:
    """The batches of `loader`, which is walked again whenever it ends.

    Raises:
        UsageError: a walk gave no batch.
    """
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise UsageError(f"{owner}: the data gave no batch; check its length, drop_last=True, and whether an iterator was used up")
