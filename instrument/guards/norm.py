"""Norms of a vector that is 0 or so small that its square underflows (NS704).

Hazard: torch gives a norm the gradient 0 at 0, but the gradient of that gradient is NaN there (a gradient penalty, at a sample that no gradient
reaches), and a norm of order 3 is NaN at once where the norm's square underflows (below 2e-4 in float16).
Forward: unchanged; a norm that overflows from finite numbers is remembered, and bounded where the config or an earlier failure asks for it.
Backward: 0 for those rows.

torch.norm, Tensor.norm, torch.dist's Python callers, F.normalize and the modules reach torch.linalg.vector_norm.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Function, Spelling, spelled
from instrument.guards.hand_over import judging
from instrument.guards.reduction import AbstractReductionGuard
from instrument.guards.result import Call
from instrument.runtime import FLOATS, is_plain_on_cpu

_aminmax = torch.aminmax

_SMALL = {dtype: torch.finfo(dtype).smallest_normal ** 0.5 for dtype in FLOATS}  # below, the square of a norm underflows


class NormGuard(AbstractReductionGuard):
    """vector_norm, linalg.norm and matrix_norm. Without a gradient nothing can be at fault, and they fall through in one branch."""

    code: ClassVar[str] = "NS704"
    section: ClassVar[str] = "sqrt"
    operand_name: ClassVar[str] = "x"
    dim_position: ClassVar[int] = 2

    def spellings(self) -> list[Spelling]:
        return [s for op in ("vector_norm", "norm", "matrix_norm") for s in spelled(op, (torch.linalg, op))]

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        op = spelling.op

        def judge(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not is_plain_on_cpu(out) or not out.requires_grad or not out.numel() or self.is_clear(op, out, args, kwargs):
                return out
            return self.answer(self._call(original, op, args, kwargs, out))

        return judging(original, spelling, judge)

    def _call(self, original: Function, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Call:
        # The Python names of the one argument differ: x, A.
        for name in ("A", "input", "self"):
            if not args and name in kwargs:
                return Call(original, op, (kwargs[name],), {k: v for k, v in kwargs.items() if k != name}, out)
        return Call(original, op, args, kwargs, out)

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        low, high = _aminmax(out.detach())
        return low.item() > _SMALL[out.dtype] and math.isfinite(high.item())

    def dims(self, call: Call, x: Tensor) -> tuple[int, ...] | None:
        named = super().dims(call, x)
        return (x.dim() - 2, x.dim() - 1) if named is None and call.op == "matrix_norm" else named

    def message(self, call: Call) -> str:
        return f"{call.op} of a vector that is 0, too small or too large"

    def rows(self, call: Call, x: Tensor, out: Tensor) -> Tensor:
        small: Tensor = ~(out > _SMALL[out.dtype])
        return small

    def bounded(self, call: Call, x: Tensor, out: Tensor, bad: Tensor) -> Tensor:
        return out.nan_to_num(0.0, torch.finfo(out.dtype).max)
