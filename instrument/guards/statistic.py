"""Statistics of too few samples: var and std of one, mean of none (NS707), and std so small that its derivative overflows.

Hazard: the unbiased variance of one sample is 0 / 0 = NaN, and so is its gradient (the last batch of an epoch that holds one row); the mean of
an empty selection is NaN.
Forward: unchanged, unless an earlier failure at the line (or the config's `division.bound_forward`) asks for a bound: then it is 0.
Backward: 0 for those rows.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Function, Spelling, spelled
from instrument.guards.hand_over import judging
from instrument.guards.reduction import AbstractReductionGuard
from instrument.guards.result import Call, smallest, total
from instrument.runtime import FLOATS, PLAIN_TYPES, is_plain_on_cpu

# torch divides the gradient of std by twice the result, except where that is exactly 0.
_SMALLEST_STD = {dtype: 1.0 / torch.finfo(dtype).max for dtype in FLOATS}


class StatisticGuard(AbstractReductionGuard):
    """var, std, var_mean and std_mean, in every spelling."""

    code: ClassVar[str] = "NS707"
    section: ClassVar[str] = "division"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in ("var", "std", "var_mean", "std_mean"):
            found += spelled(op, (torch, op), (torch.Tensor, op))
        return found

    def told_by(self, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return out[0] if type(out) is tuple else out

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        first = out[0] if type(out) is tuple else out
        if first.requires_grad and op.startswith("std"):
            return smallest(first) > _SMALLEST_STD[first.dtype]
        return math.isfinite(total(first))

    def message(self, call: Call) -> str:
        return f"{call.op} of one sample or of samples that are too close"

    def rows(self, call: Call, x: Tensor, out: Tensor) -> Tensor:
        near = (out != 0.0) & (out <= _SMALLEST_STD[out.dtype]) if call.op.startswith("std") else torch.zeros_like(out, dtype=torch.bool)
        return near | ~torch.isfinite(out)

    def bounded(self, call: Call, x: Tensor, out: Tensor, bad: Tensor) -> Tensor:
        # An infinite variance of finite numbers overflowed.
        return out.nan_to_num(0.0, torch.finfo(out.dtype).max)


class EmptyMeanGuard(AbstractReductionGuard):
    """mean of no elements, in every spelling. Any other mean falls through in one branch."""

    code: ClassVar[str] = "NS707"
    section: ClassVar[str] = "division"

    def spellings(self) -> list[Spelling]:
        return spelled("mean", (torch, "mean"), (torch.Tensor, "mean")) + spelled("nanmean", (torch, "nanmean"), (torch.Tensor, "nanmean"))

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        op = spelling.op

        def judge(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x: Any = args[0] if args else kwargs.get("input")
            if type(x) not in PLAIN_TYPES or x.numel() or not is_plain_on_cpu(x) or not is_plain_on_cpu(out) or not out.numel():
                return out
            return self.answer(Call(original, op, args, kwargs, out))

        return judging(original, spelling, judge)

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return False

    def message(self, call: Call) -> str:
        return f"{call.op} of no elements"

    def rows(self, call: Call, x: Tensor, out: Tensor) -> Tensor:
        return torch.zeros_like(out, dtype=torch.bool)  # nothing to send a gradient to

    def bounded(self, call: Call, x: Tensor, out: Tensor, bad: Tensor) -> Tensor:
        return torch.zeros_like(out)
