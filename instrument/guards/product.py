"""Products and cumulated products whose overflow, or zero, spoils their gradient (NS708).

Hazard: prod([1e20, 1e20, 0]) is inf * 0 = NaN; a cumulated product overflows for good, and every gradient behind it is inf or NaN. (Of a product
that merely holds a zero torch computes the gradient without dividing by it: measured for prod and cumprod, once and twice.)
Forward: unchanged, unless the config (`division.bound_forward`) or an earlier failure at the line asks for a bound.
Backward: 0 at the elements where it would be NaN or Inf.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.reduction import AbstractReductionGuard
from instrument.guards.result import Call, total


class ProductGuard(AbstractReductionGuard):
    """prod and cumprod, in every spelling."""

    code: ClassVar[str] = "NS708"
    section: ClassVar[str] = "division"

    def spellings(self) -> list[Spelling]:
        return spelled("prod", (torch, "prod"), (torch.Tensor, "prod")) + spelled(
            "cumprod", (torch, "cumprod"), (torch.Tensor, "cumprod"), (torch.Tensor, "cumprod_")
        )

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return math.isfinite(total(out))

    def message(self, call: Call) -> str:
        return f"{call.op} overflows"

    def rows(self, call: Call, x: Tensor, out: Tensor) -> Tensor:
        broken = ~torch.isfinite(out)
        return broken.any().expand_as(out) if call.op == "cumprod" else broken

    def _made_of_finite(self, x: Tensor, out: Tensor, dims: tuple[int, ...] | None) -> Tensor:
        if dims is None or x.dim() == 0 or out.shape != x.shape:
            return super()._made_of_finite(x, out, dims)
        # cumprod: everything up to the element counts.
        return torch.isfinite(x).long().cumprod(dims[0]).bool()

    def bounded(self, call: Call, x: Tensor, out: Tensor, bad: Tensor) -> Tensor:
        return out.nan_to_num(0.0, torch.finfo(out.dtype).max, torch.finfo(out.dtype).min)
