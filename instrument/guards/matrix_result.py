"""What guards of functions of a square matrix share: a flag for each matrix of a batch, and a gradient filtered in those matrices only."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from instrument.guards.gradient_filter import again, filtered, with_own_numbers
from instrument.guards.result import AbstractResultGuard, Call
from instrument.runtime import RUNTIME, is_plain

_NAMES = ("input", "A", "self")


class AbstractMatrixGuard(AbstractResultGuard):
    """A guard of a function that makes a number or a matrix of each matrix of a batch."""

    @abstractmethod
    def matrices(self, op: str, told: Tensor) -> Tensor:
        """Which matrices may have a gradient that is not finite (bool, of the batch's shape), by the result."""

    @abstractmethod
    def bounded(self, op: str, told: Tensor) -> Tensor:
        """The result with finite values where it is not finite."""

    def telling(self, out: Any) -> Tensor:
        """The result that tells: the last of several (the logarithm beside the sign)."""
        told: Tensor = out[-1] if isinstance(out, tuple) else out
        return told

    def told_by(self, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.telling(out)

    def settled(self, call: Call) -> Any:
        key: int | str = 0 if call.args else next((name for name in _NAMES if name in call.kwargs), 0)
        x: Any = call.args[0] if call.args else call.kwargs.get(str(key))
        if not is_plain(x) or call.kwargs.get("out") is not None:
            return call.out
        parts = list(call.out) if isinstance(call.out, tuple) else [call.out]
        told = self.telling(call.out)
        finite_input = torch.isfinite(x.detach()).all(-1).all(-1)
        flags = self.matrices(call.op, told.detach())
        bad = ~torch.isfinite(told.detach()) & _over(finite_input, told)
        any_bad = bool(bad.any())
        site = RUNTIME.run.site()
        if any_bad:
            self.born(call, bad, x, site)
        if bool(flags.any()) and self.neutralises(told):
            told_by = self.told(call, x, site)
            inner = again(call.original, call.args, call.kwargs, {key: filtered(x, _over(flags, x), told_by)})
            inners = list(inner) if isinstance(inner, tuple) else [inner]
            parts = [with_own_numbers(i, o, _over(flags, o), told_by) for i, o in zip(inners, parts, strict=True)]
        if any_bad and self.bounds_forward(site):
            self.note_bounded(call, bad, x, site)
            parts[-1] = torch.where(bad, RUNTIME.run.armed.within(self.bounded(call.op, told.detach())), parts[-1])
        if not isinstance(call.out, tuple):
            return parts[0]
        return type(call.out)(parts)  # type: ignore[call-arg]


def _over(flags: Tensor, x: Tensor) -> Tensor:
    """A flag for each matrix, as a flag for each element of `x`."""
    return flags.reshape((*flags.shape, *(1,) * (x.dim() - flags.dim()))).expand_as(x)
