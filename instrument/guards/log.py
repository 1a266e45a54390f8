"""log, log2, log10, log1p at and below the pole (NS205).

Hazard: log(0) = -inf is legal as a mask, but its gradient is g / 0; log of a negative number is NaN; the derivative 1 / x overflows just above 0
(below 3e-39 in float32, 1.5e-5 in float16).
Forward: unchanged, unless the config or an earlier failure at the line asks for a bound: then the log of the smallest number that the config
lets a logarithm see.
Backward: 0 at those elements, torch's own elsewhere.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.result import AbstractElementwiseGuard, Call, smallest
from instrument.runtime import FLOATS, RUNTIME

_SCALE = {"log": 1.0, "log1p": 1.0, "log2": 1.0 / math.log(2.0), "log10": 1.0 / math.log(10.0)}
_reciprocal = torch.reciprocal

# The derivative of log2 is 1 / (x ln 2), that of log10 smaller than 1 / x: above the logarithm of 4 / max none of them overflows. log1p has no
# finite argument between -1 and there.
_LOWEST = {op: {dtype: (math.log(4.0) - math.log(torch.finfo(dtype).max)) * scale for dtype in FLOATS} for op, scale in _SCALE.items()}


class LogGuard(AbstractElementwiseGuard):
    """The logarithms, in every spelling."""

    code: ClassVar[str] = "NS205"
    section: ClassVar[str] = "log"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in _SCALE:
            found += spelled(op, (torch, op), (torch, op + "_"), (torch.Tensor, op), (torch.Tensor, op + "_"), (torch.special, op))
        return found

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return smallest(out) > (_LOWEST[op][out.dtype] if out.requires_grad else -math.inf)

    def message(self, call: Call) -> str:
        return f"{call.op} of a value that is not positive or too small"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        x: Tensor = operands[0].to(out.dtype)
        x = x + 1.0 if op == "log1p" else x
        # log2's derivative overflows a little before that of log.
        return ~torch.isfinite(_reciprocal(x) * max(1.0, _SCALE[op])) | (x <= 0.0)

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        floor = RUNTIME.run.config.precision[out.dtype].log_floor
        return torch.full_like(out, math.log(floor) * _SCALE[op])
