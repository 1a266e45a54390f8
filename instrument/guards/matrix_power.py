"""Powers and the exponential of a matrix that overflow (NS805).

Hazard: matrix_exp overflows in float32 from a norm of about 88, matrix_power sooner; the gradient is inf or NaN throughout the matrix.
Forward: unchanged, unless the config (`division.bound_forward`) or an earlier failure at the line asks for a bound: then the dtype's largest
number stands for Inf and 0 for NaN.
Backward: elements that would be NaN or Inf are 0, for the overflowing matrices of a batch only.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.matrix_result import AbstractMatrixGuard
from instrument.guards.result import Call, total


class MatrixPowerGuard(AbstractMatrixGuard):
    """matrix_exp and matrix_power, in every spelling."""

    code: ClassVar[str] = "NS805"
    section: ClassVar[str] = "division"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in ("matrix_exp", "matrix_power"):
            found += spelled(op, (torch, op), (torch.Tensor, op), (torch.linalg, op))
        return found

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return math.isfinite(total(out))

    def message(self, call: Call) -> str:
        return f"{call.op} overflows"

    def matrices(self, op: str, told: Tensor) -> Tensor:
        return ~torch.isfinite(told).all(-1).all(-1)

    def bounded(self, op: str, told: Tensor) -> Tensor:
        largest = torch.finfo(told.dtype).max
        return told.nan_to_num(0.0, largest, -largest)
