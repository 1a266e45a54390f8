"""Entries in the order of their scores: the lowest is found at once, any one added or removed in logarithmic time."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import Final

_BLOCK: Final = 128
"""Most entries of a block. Moving 1 kB of numbers costs less than one comparison in Python, and n / 128 blocks are few."""


class Ranking:
    """Pairs (score, ticket) in ascending order; of equal scores the one with the lower ticket, the older one, comes first.

    The scores stand sorted in blocks of C numbers: a search touches one block and the list of the blocks' highest scores, where a heap
    of tuples walks through pointers all over the memory (at 80,000 entries it spent 15 of 20 us waiting for them).
    """

    def __init__(self) -> None:
        self._highest = array("d")
        self._scores: list[array[float]] = []
        self._tickets: list[list[int]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def lowest_score(self) -> float:
        """The first pair's score.

        Raises:
            IndexError: there is none.
        """
        return self._scores[0][0]

    @property
    def lowest(self) -> tuple[float, int]:
        """The first pair.

        Raises:
            IndexError: there is none.
        """
        return self._scores[0][0], self._tickets[0][0]

    def add(self, score: float, ticket: int) -> None:
        """Take in a finite score, with a ticket higher than any before."""
        self._size += 1
        highest = self._highest
        at = bisect_right(highest, score)
        if at == len(highest):
            if not highest:
                self._highest, self._scores, self._tickets = array("d", (score,)), [array("d", (score,))], [[ticket]]
                return
            at -= 1
            highest[at] = score
        scores = self._scores[at]
        place = bisect_right(scores, score)
        scores.insert(place, score)
        self._tickets[at].insert(place, ticket)
        if len(scores) > _BLOCK:
            self._split(at)

    def pop(self) -> int:
        """Remove the first pair; returns its ticket."""
        ticket = self._tickets[0].pop(0)
        scores = self._scores[0]
        del scores[0]
        self._size -= 1
        if len(scores) < _BLOCK // 4:
            self._join(0)
        return ticket

    def remove(self, score: float, ticket: int) -> None:
        """Remove a pair that is there."""
        # Of the blocks that end with this score, the first whose last ticket is not before ours; else the one after them.
        at = bisect_left(self._highest, score)
        after = bisect_right(self._highest, score, at)
        at = bisect_left(self._tickets, ticket, at, after, key=lambda tickets: tickets[-1])
        scores = self._scores[at]
        first = bisect_left(scores, score)
        place = bisect_left(self._tickets[at], ticket, first, bisect_right(scores, score, first))
        assert self._tickets[at][place] == ticket
        self._drop(at, place)

    def _drop(self, at: int, place: int) -> None:
        self._size -= 1
        scores = self._scores[at]
        del scores[place], self._tickets[at][place]
        if scores:
            self._highest[at] = scores[-1]
        if len(scores) < _BLOCK // 4:
            self._join(at)

    def _split(self, at: int) -> None:
        half = _BLOCK // 2
        scores, tickets = self._scores[at], self._tickets[at]
        self._scores[at : at + 1] = [scores[:half], scores[half:]]
        self._tickets[at : at + 1] = [tickets[:half], tickets[half:]]
        self._highest.insert(at, scores[half - 1])

    def _join(self, at: int) -> None:
        """Give the entries of a small block to a neighbour with room: blocks of few entries do not pile up."""
        scores, tickets = self._scores[at], self._tickets[at]
        for other in (at + 1, at - 1):
            if scores and (not 0 <= other < len(self._scores) or len(self._scores[other]) > _BLOCK // 2):
                continue
            if scores:
                place = 0 if other > at else len(self._scores[other])
                self._scores[other][place:place] = scores
                self._tickets[other][place:place] = tickets
                self._highest[other] = self._scores[other][-1]
            del self._scores[at], self._tickets[at], self._highest[at]
            return
