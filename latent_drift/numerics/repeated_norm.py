"""The norm of the same parameters' gradients, step after step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from latent_drift.numerics.gradients import DOT_AT_MOST, HALVES, global_norm

_cat = torch.cat
_dot = torch.dot
_flattened = torch._C._nn.flatten_dense_tensors  # type: ignore[attr-defined]

_WORTH_A_GROUP = 8
"""Tensors of one kind from which joining them apart from the others costs less than giving each a flat view first."""


_Join = Callable[[Any], Tensor]
_Pick = Callable[[list[Tensor]], Any]


class RepeatedNorm:
    """`global_norm` with a memory: how many small gradients are best joined is worked out once, which costs as much as adding them up.

    One for each list of parameters. A list that has changed gives the right number all the same, and a new plan.

    *Numerics*: as `global_norm`; squares are added in the gradients' dtype, at most 131,072 at a time.
    """

    __slots__ = ("_count", "_dtype", "_parts")

    def __init__(self) -> None:
        self._count = -1
        self._dtype: torch.dtype | None = None
        self._parts: list[tuple[_Join, _Pick]] = []

    def __call__(self, gradients: list[Tensor]) -> float:
        """The 2-norm of all of them as one vector: finite if and only if every element is. They are tensors of torch's own class."""
        if len(gradients) != self._count:
            self._plan(gradients)
        dtype = self._dtype
        if dtype is None:
            return global_norm(gradients)
        squares = 0.0
        try:
            for join, pick in self._parts:
                together = join(pick(gradients)).reshape(-1)
                if together.dtype is not dtype or together.numel() > DOT_AT_MOST or not together.is_cpu:
                    return self._anew(gradients)
                squares += _dot(together, together).item()
        except RuntimeError:  # they are of other shapes, layouts or devices than they were
            return self._anew(gradients)
        # 0 may be squares that underflowed, and infinity squares that overflowed
        return math.sqrt(squares) if 0.0 < squares < math.inf else global_norm(gradients)

    def _anew(self, gradients: list[Tensor]) -> float:
        self._count = -1
        return global_norm(gradients)

    def _plan(self, gradients: list[Tensor]) -> None:
        self._count = len(gradients)
        self._dtype, self._parts = None, []
        kinds = {(type(g), g.dtype, g.layout, g.is_cpu) for g in gradients}
        if len(kinds) != 1 or sum(g.numel() for g in gradients) > DOT_AT_MOST:
            return
        kind, dtype, layout, on_cpu = kinds.pop()
        if kind is not Tensor or not on_cpu or layout is not torch.strided or not dtype.is_floating_point or dtype in HALVES:
            return
        self._dtype = dtype
        alike: defaultdict[tuple[int, ...] | None, list[int]] = defaultdict(list)
        for index, gradient in enumerate(gradients):
            alike[tuple(gradient.shape[1:]) if gradient.dim() else None].append(index)
        rest = alike.pop(None, [])
        for indices in alike.values():
            if len(indices) >= _WORTH_A_GROUP:
                self._parts.append((_cat, itemgetter(*indices)))  # along their first dimension, as they are
            else:
                rest += indices
        if rest:
            self._parts.append((_flattened, itemgetter(*rest) if len(rest) > 1 else itemgetter(slice(rest[0], rest[0] + 1))))
