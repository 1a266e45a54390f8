"""Draws from softmax(scores) in logarithmic time, while scores come and change."""

from __future__ import annotations

import math
import sys
from array import array
from itertools import pairwise
from typing import Final

import numpy as np

_LOG2_E: Final = 1.0 / math.log(2.0)

_LARGEST: Final = sys.float_info.max  # a score of 1.3e308 is finite, its power of two is not; beyond 1.24e308 all count as that

_RANGE: Final = 400
"""Weights are held relative to a power of two that none exceeds by a factor above 2**400: times any number of leaves that is finite."""

_VANISHED: Final = 2.0**-600
"""A total below this is weighed again: weights of 2**-422 of it and less would be subnormal, and have no chance worth the name."""


class SamplingTree:
    """A tree of sums over the leaves' weights exp(score), four children a node.

    *Numerics*: a node is computed from its children, never updated by a difference, so no error accumulates. Weights are held as
    multiples of a power of two, moved when a score exceeds it by far or all have vanished; that scales every sum exactly, so that
    what is drawn depends on the scores and the uniform numbers alone, not on how the scores came about.

    Sums are brought up to date at the next draw: along the changed leaves' paths, or all in one pass where many changed.
    """

    def __init__(self) -> None:
        self._scores = array("d")
        # levels[0] holds the leaves' weights, each further level the sums of four, up to a level of at most four. Every level but
        # the last is padded to a multiple of four. C numbers, side by side: a node's children share a cache line.
        self._levels: list[array[float]] = [array("d")]
        self._exponent = 0
        self._changed: list[int] = []
        self._all_changed = False
        self._beyond = False  # a score came that exceeds the reference by too much

    def __len__(self) -> int:
        return len(self._scores)

    def append(self, score: float) -> None:
        """One more leaf, with a finite score."""
        leaf = len(self._scores)
        self._scores.append(score)
        node = leaf
        for level in self._levels:
            if node < len(level):
                break
            level.extend((0.0, 0.0, 0.0, 0.0))
            node >>= 2
        if len(self._levels[-1]) > 4:
            self._levels.append(array("d", (0.0, 0.0, 0.0, 0.0)))
            self._all_changed = True
        self.set_score(leaf, score)

    def set_score(self, leaf: int, score: float) -> None:
        """Give a leaf a finite score."""
        self._scores[leaf] = score
        self._levels[0][leaf] = self._weight(score)
        if not self._all_changed:
            self._changed.append(leaf)
            if len(self._changed) > 40 + len(self._scores) // 1000:  # from here on one pass over all costs less
                self._all_changed = True

    def score_of(self, leaf: int) -> float:
        """A leaf's score."""
        return self._scores[leaf]

    def draw(self, uniforms: list[float]) -> list[int]:
        """For each number of [0, 1) a leaf: independent draws with replacement, if the numbers are independent and uniform."""
        if self._changed or self._all_changed or self._beyond:
            self._sum()
        total = sum(self._levels[-1])
        downwards = self._levels[::-1]
        leaves = []
        for uniform in uniforms:
            rest, node = uniform * total, 0
            for level in downwards:
                node *= 4
                weight = level[node]
                if rest >= weight:
                    rest -= weight
                    node += 1
                    weight = level[node]
                    if rest >= weight:
                        rest -= weight
                        node += 1
                        weight = level[node]
                        if rest >= weight:
                            rest -= weight
                            node += 1
                            while level[node] == 0.0:  # rounding must not lead into an empty branch
                                node -= 1
            leaves.append(node)
        return leaves

    def _weight(self, score: float) -> float:
        power = _power(score)
        whole = math.floor(power)
        if whole - self._exponent > _RANGE:
            self._beyond = True
            return 0.0
        return math.ldexp(2.0 ** (power - whole), whole - self._exponent)

    def _sum(self) -> None:
        if self._beyond:
            self._weigh_again()
        self._sum_changed()
        if sum(self._levels[-1]) < _VANISHED:
            self._weigh_again()
            self._sum_changed()

    def _weigh_again(self) -> None:
        self._exponent = math.floor(_power(max(self._scores)))
        self._beyond = False
        leaves = self._levels[0]
        for leaf, score in enumerate(self._scores):
            leaves[leaf] = self._weight(score)
        self._all_changed = True

    def _sum_changed(self) -> None:
        levels = self._levels
        if self._all_changed:
            for below, above in pairwise(levels):
                children = np.frombuffer(below).reshape(-1, 4)
                sums = children[:, 0] + children[:, 1] + children[:, 2] + children[:, 3]
                np.frombuffer(above)[: len(sums)] = sums
        else:
            nodes = {leaf >> 2 for leaf in self._changed}
            for below, above in pairwise(levels):
                for node in nodes:
                    child = 4 * node
                    above[node] = below[child] + below[child + 1] + below[child + 2] + below[child + 3]
                nodes = {node >> 2 for node in nodes}
        self._changed.clear()
        self._all_changed = False


def _power(score: float) -> float:
    """The power of two that exp(score) is, as a finite number."""
    return min(max(score * _LOG2_E, -_LARGEST), _LARGEST)
