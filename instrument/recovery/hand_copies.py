"""Copies of tensors that a script updates by hand, where no optimizer's step stands between a number and the parameter.

`w -= lr * g` overflows without any guarded operation: the tensors are copied when backward returns, before the update, and looked at when it
returns the next time. A script that makes new tensors at every step (`w = (w - lr * g).detach().requires_grad_()`) has them in the same
order with the same shapes: a copy then belongs to the place, not to the tensor. The memory is one copy of what is updated by hand.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from instrument.runtime import is_plain, without_function_modes
from latent_drift.numerics.finite import is_finite


class HandCopies:
    """What the tensors updated by hand were before their latest update."""

    def __init__(self) -> None:
        self._copies: list[tuple[weakref.ref[Tensor], Tensor]] = []

    def bytes(self) -> int:
        """Memory that the copies take."""
        return sum(copy.nbytes for _, copy in self._copies)

    def look(self, leaves: Sequence[Tensor]) -> int:
        """Put back the tensors that the latest update spoilt, copy the others; returns how many were put back."""
        plain = [leaf for leaf in leaves if is_plain(leaf) and leaf.numel()]
        restored = 0
        with torch.no_grad(), without_function_modes():
            held = self._copies  # another thread may put a list of its own there
            by_place = len(plain) == len(held) and all(leaf.shape == c.shape for leaf, (_, c) in zip(plain, held, strict=True))
            before = {id(t): copy for reference, copy in held if (t := reference()) is not None}
            copies = []
            for index, leaf in enumerate(plain):
                copy = before.get(id(leaf))
                if copy is None and by_place:
                    copy = held[index][1]
                if is_finite(leaf):
                    copy = _refreshed(copy, leaf)
                elif copy is not None and copy.shape == leaf.shape and copy.dtype is leaf.dtype:
                    leaf.data.copy_(copy)
                    restored += 1
                else:
                    continue
                copies.append((weakref.ref(leaf), copy))
        self._copies = copies
        return restored

    def put_back(self) -> int:
        """Restore what has become non-finite since the last look; returns how many tensors were."""
        restored = 0
        with torch.no_grad(), without_function_modes():
            for reference, copy in self._copies:
                leaf = reference()
                if leaf is not None and leaf.shape == copy.shape and not is_finite(leaf):
                    leaf.data.copy_(copy)
                    restored += 1
        return restored


def _refreshed(copy: Tensor | None, leaf: Tensor) -> Tensor:
    """The copy with the leaf's numbers, in its own memory where that fits."""
    if copy is None or copy.shape != leaf.shape or copy.dtype is not leaf.dtype or copy.device != leaf.device:
        return leaf.detach().clone()
    return copy.copy_(leaf.detach())
