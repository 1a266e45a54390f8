"""reciprocal and rsqrt of 0, or of a number so small that the derivative overflows (NS304). `1.0 / x` is `x.reciprocal() * 1.0` in torch.

Hazard: 1 / 0 = inf with a derivative of -1 / 0^2; chosen away by a `where`, it sends NaN back.
Forward: unchanged, unless the config or an earlier failure at the line asks for a bound: then the argument counts as the smallest that the
config lets a division see, with its own sign.
Backward: 0 at those elements.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.result import AbstractElementwiseGuard, Call, magnitude
from instrument.runtime import FLOATS, RUNTIME

_reciprocal = torch.reciprocal
_rsqrt = torch.rsqrt

# 1/x has the derivative r^2 and x^-1/2 has r^3 / 2, with r the result: below these magnitudes of r neither overflows.
_LIMIT = {
    "reciprocal": {dtype: torch.finfo(dtype).max ** 0.5 for dtype in FLOATS},
    "rsqrt": {dtype: torch.finfo(dtype).max ** (1.0 / 3.0) for dtype in FLOATS},
}


class ReciprocalGuard(AbstractElementwiseGuard):
    """reciprocal and rsqrt, in every spelling."""

    code: ClassVar[str] = "NS304"
    section: ClassVar[str] = "division"

    def spellings(self) -> list[Spelling]:
        return [s for op in _LIMIT for s in spelled(op, (torch, op), (torch, op + "_"), (torch.Tensor, op), (torch.Tensor, op + "_"))]

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return bool(magnitude(out) < _LIMIT[op][out.dtype])

    def message(self, call: Call) -> str:
        return f"{call.op} of 0 or of a number too small"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        return ~torch.isfinite(out * out * out if op == "rsqrt" else out * out)

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        (x,) = operands
        floor = RUNTIME.run.config.precision[out.dtype].division_eps
        x = x.to(out.dtype)
        if op == "rsqrt":
            return _rsqrt(x.clamp(min=floor))
        return _reciprocal(torch.copysign(x.abs().clamp(min=floor), x))
