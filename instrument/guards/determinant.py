"""Determinants of singular matrices (NS703).

Hazard: the logarithm of the determinant of a singular matrix is -inf (logdet of one with a negative determinant: NaN), and its gradient, the
inverse, is not finite. The determinant itself is 0 with a finite gradient, whose own derivative is NaN.
Forward: unchanged, unless the config (`log.bound_forward`) or an earlier failure at the line asks for a bound: then -inf is the log of the
smallest number that the config lets a logarithm see.
Backward: elements that would be NaN or Inf are 0, for the singular matrices of a batch only.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.matrix_result import AbstractMatrixGuard
from instrument.guards.result import Call, total
from instrument.runtime import RUNTIME


class DeterminantGuard(AbstractMatrixGuard):
    """det, logdet and slogdet, in every spelling."""

    code: ClassVar[str] = "NS703"
    section: ClassVar[str] = "log"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in ("det", "logdet", "slogdet"):
            found += spelled(op, (torch, op), (torch.Tensor, op), (torch.linalg, op))
        return found

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        told = self.telling(out)
        if not math.isfinite(total(told)):
            return False
        return op != "det" or not told.requires_grad or not bool((told.detach() == 0.0).any())

    def message(self, call: Call) -> str:
        return f"{call.op} of a singular matrix"

    def matrices(self, op: str, told: Tensor) -> Tensor:
        return ~torch.isfinite(told) | (told == 0.0) if op == "det" else ~torch.isfinite(told)

    def bounded(self, op: str, told: Tensor) -> Tensor:
        floor = RUNTIME.run.config.precision[told.dtype].log_floor
        largest = torch.finfo(told.dtype).max
        lowest = -largest if op == "det" else math.log(floor)
        return told.nan_to_num(0.0 if op == "det" else lowest, largest, lowest)
