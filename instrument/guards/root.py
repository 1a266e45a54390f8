"""Square roots, norms and standard deviations at 0 (NS704).

Hazard: sqrt(0) = 0 has the derivative g / 0, which is inf, or NaN for the gradient 0 that a `where` sends. sqrt of a negative number (a variance
that cancelled) is NaN. torch gives norms the gradient 0 at 0, but the derivative of that gradient (a gradient penalty) is NaN there, hypot(0, 0)
has NaN at once, and so have a norm of order 3 and a standard deviation whose square underflows.
Forward: unchanged, unless the config or an earlier failure at the line asks for a bound: then the root of a negative number is 0.
Backward: 0 at those elements, at every order.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.result import AbstractElementwiseGuard, Call, smallest

_sqrt = torch.sqrt


class RootGuard(AbstractElementwiseGuard):
    """sqrt, in every spelling."""

    code: ClassVar[str] = "NS704"
    section: ClassVar[str] = "sqrt"

    def spellings(self) -> list[Spelling]:
        return spelled("sqrt", (torch, "sqrt"), (torch, "sqrt_"), (torch.Tensor, "sqrt"), (torch.Tensor, "sqrt_"))

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        low = smallest(out)
        return low > 0.0 or (low == 0.0 and not out.requires_grad)

    def message(self, call: Call) -> str:
        return "sqrt of 0 or of a negative number"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        x: Tensor = operands[0]
        return x <= 0.0

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        return torch.zeros_like(out)


class HypotGuard(AbstractElementwiseGuard):
    """hypot: the distance from the origin, whose direction at the origin is 0 / 0."""

    code: ClassVar[str] = "NS704"
    section: ClassVar[str] = "sqrt"
    operands: ClassVar[tuple[str, ...]] = ("input", "other")

    def spellings(self) -> list[Spelling]:
        return spelled("hypot", (torch, "hypot"), (torch.Tensor, "hypot"), (torch.Tensor, "hypot_"))

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not out.requires_grad:
            return True
        return 0.0 < smallest(out) < math.inf

    def message(self, call: Call) -> str:
        return "hypot of 0 and 0"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        return ~(out > 0.0)

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        return torch.full_like(out, torch.finfo(out.dtype).max)
