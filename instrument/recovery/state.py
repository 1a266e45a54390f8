"""Optimizer state and parameters that were spoilt from outside of any step (NS804, NS807): loaded so, written so, or hit by a bit flip.

The gradients are judged before every step, so a step of finite numbers cannot spoil state. What else writes there is noticed by torch's version
counters: only then is the state looked at. An element of it that is not finite makes its parameter NaN with the very next step, for ever; set to 0,
with everything else that the optimizer remembers of this element, it is as it was before the first step.
"""

from __future__ import annotations

import math
from operator import attrgetter

import torch
from torch import Tensor
from torch.optim import Optimizer

from instrument.by_optimizer import ByOptimizer
from instrument.runtime import FLOATS, without_function_modes
from latent_drift.numerics.finite import dense_values, is_finite

_version = attrgetter("_version")

MOST_LOST = 0.5
"""Share of a tensor's elements up to which they are set to 0: what remains still holds what was learnt."""


class _Seen:
    """The state tensors of an optimizer, and the sum of their version counters: before its latest step, and by how much each step adds to it.

    An optimizer writes equally often at every step, so what a step leaves need not be read after it: it is known before the next one, and a
    write from outside shows as one too many. Only where steps differ (a parameter has no gradient now and then) is the sum read after each.
    """

    __slots__ = ("after", "before", "holder", "regular", "size", "tensors", "writes")

    def __init__(self, optimizer: Optimizer) -> None:
        self.holder = optimizer.state
        self.size = len(optimizer.state)
        self.tensors = state_tensors(optimizer)
        self.after = sum(map(_version, self.tensors))
        self.before: int | None = None
        self.writes: int | None = None
        self.regular = True

    def step_finished(self, *, failed: bool) -> None:
        """The optimizer has written, unless its step failed and was left out or put back."""
        if self.regular and self.before is not None and self.writes is not None and not failed:
            self.after = self.before + self.writes
            return
        self.after = sum(map(_version, self.tensors))
        if self.before is not None and not failed:
            self.writes = self.after - self.before


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """The floating-point or complex tensors that an optimizer remembers of its parameters; step counters are left out."""
    return [
        value
        for parameter, state in optimizer.state.items()
        if isinstance(state, dict)
        for value in state.values()
        if isinstance(value, Tensor)
        and (value.is_floating_point() or value.is_complex())
        and (value.numel() > 1 or (isinstance(parameter, Tensor) and value.shape == parameter.shape))
    ]


class OutsideWrites:
    """Whether anybody but the optimizer has written into its state since its latest step."""

    def __init__(self) -> None:
        self._seen: ByOptimizer[_Seen] = ByOptimizer()

    def after_step(self, optimizer: Optimizer, *, failed: bool = False) -> None:
        """The optimizer has written: from here on, others."""
        seen = self._seen.get(id(optimizer))
        if seen is None or seen.holder is not optimizer.state or seen.size != len(optimizer.state):
            self._seen.put(optimizer, _Seen(optimizer))
        else:
            seen.step_finished(failed=failed)

    def happened(self, optimizer: Optimizer) -> bool:
        """True if the state may hold what no step put there; also before the first step that is seen."""
        seen = self._seen.get(id(optimizer))
        if seen is None:
            return bool(optimizer.state)
        if seen.holder is not optimizer.state or seen.size != len(optimizer.state):
            return True
        now = sum(map(_version, seen.tensors))
        touched: bool = now != seen.after
        if touched:
            seen.regular = False  # somebody has written, or the step was another one than those before it
        seen.before = now
        return touched


@torch.no_grad()
def zero_spoilt_state(optimizer: Optimizer) -> int:
    """Set to 0 every non-finite element of the state, together with all that is remembered of the same parameter element; returns how many
    elements were not finite."""
    count = 0
    with without_function_modes():
        for parameter, state in optimizer.state.items():
            if not isinstance(state, dict) or not isinstance(parameter, Tensor):
                continue
            alike = [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape and v.layout is torch.strided]
            spoilt = [v for v in alike if not is_finite(v)]
            for value in spoilt:
                bad = ~torch.isfinite(value)
                count += int(bad.sum())
                for other in alike:
                    if other.device == bad.device:
                        other.detach().masked_fill_(bad, 0)
            for value in state.values():
                if isinstance(value, Tensor) and value.numel() > 0 and not any(value is v for v in alike) and not is_finite(value):
                    values = dense_values(value)
                    bad = ~torch.isfinite(values)
                    count += int(bad.sum())
                    values.masked_fill_(bad, 0)
    return count


@torch.no_grad()
def zero_spoilt_parameters(parameters: list[Tensor], *, overflowing: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Set the non-finite elements of parameters to 0 where most of the tensor is left; returns the mended ones and those past mending.

    Args:
        overflowing: elements whose square overflows count as spoilt too: hardly a forward pass survives one (a flipped exponent bit makes such).
    """
    mended: list[Tensor] = []
    lost: list[Tensor] = []
    with without_function_modes():
        for parameter in parameters:
            values = dense_values(parameter.data)  # unseen by autograd: a graph that saved the parameter may still be waiting for its backward pass
            if values.dtype not in FLOATS or not values.numel():
                continue
            limit = torch.finfo(values.dtype).max ** 0.5 if overflowing and values.dtype.itemsize > 2 else math.inf
            bad = ~(values.abs() < limit)  # a NaN is not below anything
            if not bool(bad.any()):
                continue
            if bad.double().mean().item() > MOST_LOST:
                lost.append(parameter)
            else:
                values.masked_fill_(bad, 0)
                mended.append(parameter)
    return mended, lost
