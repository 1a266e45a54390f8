"""A line of our own between the processes that train one model: a few numbers from each to all.

It has its own connections, so that nothing of ours stands between two collectives of the script, and its own limit of time, so that a process
that does not come costs a pause once and no hang. It is opened only when every one of the processes is known to be guarded: each says so in
the job's store before a collective of the script that none can leave before all have entered, and looks after it. All of them then see the
same answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist

from instrument.distributed.shards import Ranks
from instrument.runtime import without_function_modes

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds to wait for the others between two collectives of theirs. Those that train one model are at the same line within far less."""

LEAVING = 2.0
"""Seconds that a process which leaves its block waits for those that still expect a word of it."""

_opened: Counter[Ranks] = Counter()


class _State(Enum):
    NEW = 0
    ANNOUNCED = 1
    OPEN = 2
    CLOSED = 3


class Channel:
    """The line between `ranks`, which are global and sorted; this process is one of them."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.place = ranks.index(dist.get_rank())
        self._state = _State.NEW
        self._group: Any = None
        self._prefix = f"latent-drift/{'-'.join(map(str, ranks)) if len(ranks) <= 16 else hash(ranks)}/{_opened[ranks]}"
        _opened[ranks] += 1

    @property
    def is_open(self) -> bool:
        """Whether words can be exchanged."""
        return self._state is _State.OPEN

    def announce(self) -> None:
        """Say that this process is guarded. To be called before a collective of the script."""
        if self._state is _State.NEW:
            self._say("guarded")
            self._state = _State.ANNOUNCED

    def open_if_all_announced(self) -> None:
        """Open the line, or close it for good if a process is missing. To be called after a collective that waited for all of them."""
        if self._state is not _State.ANNOUNCED:
            return
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # there a collective has only been asked for when its call returns
        store = self._store()
        keys = [f"{self._prefix}/{place}" for place in range(len(self.ranks))]
        if not store.check(keys) or any(store.get(key) != b"guarded" for key in keys):
            # Said before the next collective, so that one that joins later finds it.
            self._say("alone")
            self._state = _State.CLOSED
            return
        try:
            self._group = dist.ProcessGroupGloo(
                dist.distributed_c10d.PrefixStore(f"{self._prefix}/line", store), self.place, len(self.ranks), timedelta(seconds=PATIENCE)
            )
            self._state = _State.OPEN
        except (RuntimeError, AttributeError) as error:  # a torch without gloo, or no way to the others
            self.close(f"no line to the other processes could be opened ({error})")

    def exchange(self, words: Sequence[float], patience: float = PATIENCE) -> list[tuple[float, ...]] | None:
        """Give these numbers to all and get theirs, in the order of ranks; None if they did not all come, and then never again."""
        if not self.is_open:
            return None
        try:
            with without_function_modes(), torch.no_grad():
                mine = torch.tensor(words, dtype=torch.float64, device="cpu")
                theirs = [torch.empty_like(mine) for _ in self.ranks]
                self._group.allgather([theirs], [mine]).wait(timedelta(seconds=patience))
                return [tuple(row.tolist()) for row in theirs]
        except RuntimeError as error:
            self.close(f"ranks {', '.join(map(str, self.ranks))} did not all answer ({str(error).splitlines()[0]})")
            return None

    def close(self, reason: str) -> None:
        """Decide alone from now on."""
        logger.warning("each process decides alone from here on: %s", reason)
        self._state = _State.CLOSED

    def _say(self, word: str) -> None:
        key = f"{self._prefix}/{self.place}"
        self._store().set(key, word)
        self._store().get(key)  # a word is only sent on its way; once it can be read back it is there for everybody

    @staticmethod
    def _store() -> Any:
        return dist.distributed_c10d._get_default_store()
