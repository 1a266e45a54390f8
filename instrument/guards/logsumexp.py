"""logsumexp and its kin over entries that are all -inf (NS106).

Hazard: the log of a sum over a row without a finite entry is -inf, as it should be, but its gradient is exp(-inf - (-inf)) = NaN; logcumsumexp
does the same for every leading -inf, and logaddexp for two of them.
Forward: unchanged.
Backward: 0 at those entries: nothing was summed there.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.reduction import AbstractReductionGuard
from instrument.guards.result import AbstractElementwiseGuard, Call, total


class LogSumExpGuard(AbstractReductionGuard):
    """logsumexp and logcumsumexp, in every spelling."""

    code: ClassVar[str] = "NS106"
    section: ClassVar[str] = "log"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in ("logsumexp", "logcumsumexp"):
            found += spelled(op, (torch, op), (torch.Tensor, op), (torch.special, op))
        return found

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return not out.requires_grad or math.isfinite(total(out))

    def message(self, call: Call) -> str:
        return f"{call.op} of entries that are all -inf"

    def rows(self, call: Call, x: Tensor, out: Tensor) -> Tensor:
        broken = torch.isinf(out)
        return broken.any().expand_as(out) if call.op == "logcumsumexp" else broken

    def bounded(self, call: Call, x: Tensor, out: Tensor, bad: Tensor) -> Tensor:
        return out.nan_to_num(0.0, torch.finfo(out.dtype).max, torch.finfo(out.dtype).min)


class LogAddExpGuard(AbstractElementwiseGuard):
    """logaddexp and logaddexp2, in every spelling."""

    code: ClassVar[str] = "NS106"
    section: ClassVar[str] = "log"
    operands: ClassVar[tuple[str, ...]] = ("input", "other")

    def spellings(self) -> list[Spelling]:
        return [s for op in ("logaddexp", "logaddexp2") for s in spelled(op, (torch, op), (torch.Tensor, op))]

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return not out.requires_grad or math.isfinite(total(out))

    def message(self, call: Call) -> str:
        return f"{call.op} of two entries that are infinite"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        return torch.isinf(out)

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        return out.nan_to_num(0.0, torch.finfo(out.dtype).max, torch.finfo(out.dtype).min)
