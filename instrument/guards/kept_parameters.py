"""Copies of parameters from the moment before a bad number may reach them, for updates that no optimizer's step makes.

An update by hand, a plain class with a `step()` or a SAM-like half step writes into parameters where no guard stands. What can be seen is the
operation in it that makes a non-finite number of finite ones, `g / v.sqrt()` with a gradient of 0: then, before the script writes it anywhere,
the parameters are copied. If the step goes well the copies are dropped; if it fails, parameters that have become non-finite are put back.

Healthy steps cost nothing: a copy is made at a birth only, and a line that makes infinities in healthy steps counts as none after the first.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from instrument.runtime import is_plain, without_function_modes
from latent_drift.numerics.finite import is_finite


class KeptParameters:
    """The parameters that a run has met, and copies of them while a bad number is about."""

    def __init__(self) -> None:
        self._leaves: dict[int, weakref.ref[Tensor]] = {}  # read from copies: another thread may add to it
        self._copies: list[tuple[weakref.ref[Tensor], Tensor]] = []

    def meet(self, leaves: Iterable[Tensor]) -> None:
        """Leaves that are updated without an optimizer."""
        for leaf in leaves:
            known = self._leaves.get(id(leaf))
            if known is None or known() is not leaf:
                self._leaves = {key: reference for key, reference in self._leaves.copy().items() if reference() is not None}
                self._leaves[id(leaf)] = weakref.ref(leaf)

    def leaves(self) -> list[Tensor]:
        """The leaves that are updated without an optimizer and are still alive."""
        return [leaf for reference in list(self._leaves.values()) if (leaf := reference()) is not None]

    def keep(self, optimizers: Iterable[Optimizer]) -> None:
        """Copy every parameter that is finite now, unless copies are held already."""
        if self._copies:
            return
        met = {id(leaf): leaf for reference in list(self._leaves.values()) if (leaf := reference()) is not None}
        met.update((id(p), p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
        with torch.no_grad(), without_function_modes():
            there = (p for p in met.values() if is_plain(p) and p.untyped_storage().nbytes() > 0)  # memory may have been given back for a while
            self._copies = [(weakref.ref(p), p.detach().clone()) for p in there if is_finite(p)]

    def put_back(self) -> list[Tensor]:
        """Restore the parameters that have become non-finite; returns them. The copies stay: the script may write the bad number once more.

        Written through `.data`: a graph that is about to be differentiated holds these parameters, and autograd is not to see a write.
        """
        restored = []
        with torch.no_grad(), without_function_modes():
            for reference, copy in self._copies:
                parameter = reference()
                if parameter is not None and parameter.shape == copy.shape and parameter.dtype is copy.dtype and not is_finite(parameter):
                    parameter.data.copy_(copy)
                    restored.append(parameter)
        return restored

    def drop(self) -> None:
        """A step went well: its parameters are better than the copies."""
        self._copies.clear()
