"""Draws from softmax(scores) in logarithmic time, while scores come and change."""

from __future__ import annotations

import math
from array import array
from typing import Final

_RANGE: Final = 300.0
"""Scores are exponentiated relative to a reference that none exceeds by more: exp(300) times any number of leaves is finite.

What lies 1,000 below the best has weight exp(-700) or 0, and no chance worth the name either way."""


class SamplingTree:
    """A binary tree of sums over the leaves' weights exp(score - reference).

    *Numerics*: a node is recomputed from its children, never updated by a difference, so no error accumulates. When a score
    exceeds the reference by 300, or all weights have vanished, all are weighed again: once in 300 units of growth.
    """

    def __init__(self) -> None:
        self._capacity = 1
        # Node k has the children 2k and 2k + 1, leaf i is node capacity + i; an array, so that a large tree stays in cache.
        self._sums = array("d", [0.0, 0.0])
        self._scores: list[float] = []
        self._reference = 0.0

    def __len__(self) -> int:
        return len(self._scores)

    def append(self) -> None:
        """One more leaf, with weight 0 until it gets a score."""
        self._scores.append(-math.inf)
        if len(self._scores) > self._capacity:
            self._capacity *= 2
            self._rebuild()

    def set_score(self, leaf: int, score: float) -> None:
        """Give a leaf a finite score."""
        self._scores[leaf] = score
        difference = score - self._reference
        if difference > _RANGE:
            self._recentre()
            return
        node = self._capacity + leaf
        sums = self._sums
        sums[node] = math.exp(difference)
        while node > 1:
            node >>= 1
            sums[node] = sums[2 * node] + sums[2 * node + 1]
        if sums[1] < 1e-200:
            self._recentre()

    def draw(self, uniforms: list[float]) -> list[int]:
        """For each number of [0, 1) a leaf: independent draws with replacement, if the numbers are independent and uniform."""
        sums, capacity = self._sums, self._capacity
        total, last = sums[1], len(self._scores) - 1
        leaves = []
        for uniform in uniforms:
            rest, node = uniform * total, 1
            while node < capacity:
                node *= 2
                left = sums[node]
                if rest >= left and sums[node + 1] > 0.0:  # rounding must not lead into an empty branch
                    rest -= left
                    node += 1
            leaves.append(min(node - capacity, last))
        return leaves

    def _recentre(self) -> None:
        self._reference = max(self._scores)
        self._rebuild()

    def _rebuild(self) -> None:
        capacity = self._capacity
        sums = array("d", bytes(16 * capacity))
        for leaf, score in enumerate(self._scores):
            sums[capacity + leaf] = math.exp(score - self._reference)
        for node in range(capacity - 1, 0, -1):
            sums[node] = sums[2 * node] + sums[2 * node + 1]
        self._sums = sums
