"""Conversion to a dtype that cannot hold the number: `half()`, `to(torch.float16)`, `type(...)` (NS805).

Hazard: an income of 70,000 is inf in float16, and so is a float64 of 1e40 in float32. Nothing looks wrong at that line; the first layer or the first
normalisation that meets the row turns it into NaN.
Forward: unchanged (rounding to infinity is legal, and the row may never be used); the place is remembered as a birth.
Backward: torch's own, which converts the gradient.

A conversion that does not narrow falls through in one branch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import AbstractGuard, Function, Spelling, spelled
from instrument.guards.hand_over import judging
from instrument.guards.result import total
from instrument.runtime import RUNTIME, is_plain_on_cpu

_NARROWING = frozenset(
    {(torch.float16, x) for x in (torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64)}
    | {(torch.float32, torch.float64), (torch.bfloat16, torch.float64)}
)


class NarrowingGuard(AbstractGuard):
    """Tensor's conversions of dtype."""

    code: ClassVar[str] = "NS805"

    def spellings(self) -> list[Spelling]:
        return [s for op in ("half", "bfloat16", "float", "to", "type") for s in spelled(op, (Tensor, op))]

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        op = spelling.op

        def judge(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else None
            if out is x or not isinstance(x, Tensor) or not isinstance(out, Tensor) or (out.dtype, x.dtype) not in _NARROWING:
                return out
            if not is_plain_on_cpu(out) or not out.numel() or math.isfinite(total(out)):
                return out
            overflowed = torch.isinf(out.detach()) & torch.isfinite(x.detach())
            count = int(overflowed.sum())
            if count and not RUNTIME.run.allows(op):
                largest = torch.finfo(out.dtype).max
                message = f"{op}: {count} of {out.numel()} numbers are beyond {largest:.5g}, the most that {str(out.dtype)[6:]} holds"
                RUNTIME.run.search.born(self.code, op, message=message, x=x, result=out)
            return out

        return judging(original, spelling, judge)
