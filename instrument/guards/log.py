"""log, log2, log10, log1p at and below the pole (NS205).

Hazard: log(0) = -inf is legal as a mask, but its gradient is g / 0; log of a negative number is NaN.
Forward: unchanged, unless the config or an earlier failure at the line asks for a bound: then the log of the smallest number that the config
lets a logarithm see.
Backward: 0 at those elements, torch's own elsewhere.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.edge import AbstractEdgeGuard
from instrument.runtime import RUNTIME

_SCALE = {"log": 1.0, "log1p": 1.0, "log2": 1.0 / math.log(2.0), "log10": 1.0 / math.log(10.0)}


class LogGuard(AbstractEdgeGuard):
    """The logarithms, in every spelling."""

    code: ClassVar[str] = "NS205"
    section: ClassVar[str] = "log"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in _SCALE:
            found += spelled(op, (torch, op), (torch, op + "_"), (torch.Tensor, op), (torch.Tensor, op + "_"), (torch.special, op))
        return found

    def edge(self, op: str, operand: Tensor) -> Tensor:
        return operand <= (-1.0 if op == "log1p" else 0.0)

    def harmless(self, op: str) -> float:
        return 1.0

    def bounded(self, op: str, out: Tensor, bad: Tensor) -> Tensor:
        floor = RUNTIME.run.config.precision[out.dtype].log_floor
        return torch.where(bad, math.log(floor) * _SCALE[op], out)

    def message(self, op: str, count: int, total: int) -> str:
        return f"{op} of a value that is not positive, in {count} of {total} elements"
