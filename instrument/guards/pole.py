"""Functions that contain a logarithm, at its pole: logit, xlogy, xlog1py, entr, lgamma, digamma, log_ndtr (NS205).

Hazard: xlogy(0, 0) is 0 as it should be, but its derivative with respect to y is 0 / 0; logit(0) = -inf is legal where it is masked, and sends
NaN back; digamma and lgamma have a pole at 0 and at every negative integer.
Forward: unchanged, unless the config or an earlier failure at the line asks for a bound: then the argument counts as the nearest inside.
Backward: 0 at those elements.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.result import AbstractElementwiseGuard, Call, magnitude, smallest, total
from instrument.runtime import FLOATS, RUNTIME

_logit = torch.logit
_div = torch.div
_xlogy = torch.xlogy

_PLACES = {
    "logit": ("logit",),
    "lgamma": ("lgamma", "gammaln"),
    "digamma": ("digamma", "psi"),
    "entr": ("entr",),
    "log_ndtr": ("log_ndtr",),
}

# Below these results no derivative overflows: logit and lgamma grow as log(1/x) with derivative 1/x, digamma as 1/x with derivative 1/x^2.
_LOG = {dtype: math.log(torch.finfo(dtype).max) - 1.0 for dtype in FLOATS}
_ROOT = {dtype: 0.5 * torch.finfo(dtype).max ** 0.5 for dtype in FLOATS}
_MAX = {dtype: math.inf for dtype in FLOATS}
_LIMIT = {"logit": _LOG, "lgamma": _LOG, "digamma": _ROOT, "log_ndtr": _MAX}


class PoleGuard(AbstractElementwiseGuard):
    """logit, lgamma, digamma, entr and log_ndtr, in every spelling."""

    code: ClassVar[str] = "NS205"
    section: ClassVar[str] = "log"

    def spellings(self) -> list[Spelling]:
        found = []
        for op, names in _PLACES.items():
            for name in names:
                found += spelled(op, (torch, name), (torch, name + "_"), (torch.Tensor, name), (torch.Tensor, name + "_"), (torch.special, name))
        return found

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if op == "entr":
            if not out.requires_grad:
                return math.isfinite(total(out))
            x = args[0] if args else kwargs["input"]
            return smallest(x) > 0.0 and math.isfinite(total(out))
        return magnitude(out) < (_LIMIT[op][out.dtype] if out.requires_grad else math.inf)

    def message(self, call: Call) -> str:
        return f"{call.op} at a pole"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        x: Tensor = operands[0]
        if op == "entr":
            return x <= torch.finfo(out.dtype).tiny
        beyond: Tensor = ~(out.abs() < _LIMIT[op][out.dtype])
        return beyond

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        (x,) = operands
        if op == "logit":
            info = torch.finfo(out.dtype)
            return _logit(x.to(out.dtype).clamp(info.smallest_normal, 1.0 - info.eps))
        # The largest result that a derivative still follows.
        largest = {"entr": 0.0, "log_ndtr": torch.finfo(out.dtype).max}.get(op, _LIMIT.get(op, _MAX)[out.dtype])
        return torch.nan_to_num(out, nan=0.0, posinf=largest, neginf=-largest).clamp(-largest, largest)


class XLogYGuard(AbstractElementwiseGuard):
    """xlogy and xlog1py, in every spelling."""

    code: ClassVar[str] = "NS205"
    section: ClassVar[str] = "log"
    operands: ClassVar[tuple[str, ...]] = ("input", "other")

    def spellings(self) -> list[Spelling]:
        found = []
        for op in ("xlogy", "xlog1py"):
            found += spelled(op, (torch, op), (torch, op + "_"), (torch.Tensor, op), (torch.Tensor, op + "_"), (torch.special, op))
        return found

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not math.isfinite(total(out)):
            return False
        y = args[1] if len(args) > 1 else kwargs.get("other")
        if not out.requires_grad or not isinstance(y, Tensor):
            return True
        return y.numel() > 0 and smallest(y) > (_SMALLEST[y.dtype] if y.dtype in FLOATS else 0.0) - (1.0 if op == "xlog1py" else 0.0)

    def message(self, call: Call) -> str:
        return f"{call.op} at the pole of its logarithm"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        x, y = (v.to(out.dtype) if isinstance(v, Tensor) else torch.tensor(v, dtype=out.dtype) for v in operands)
        y = y + 1.0 if op == "xlog1py" else y
        return (y <= 0.0) | ~torch.isfinite(_div(x, y))

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        x, y = (v.to(out.dtype) if isinstance(v, Tensor) else torch.tensor(v, dtype=out.dtype) for v in operands)
        floor = RUNTIME.run.config.precision[out.dtype].log_floor
        y = y + 1.0 if op == "xlog1py" else y
        largest = torch.finfo(out.dtype).max
        return _xlogy(x, y.clamp(min=floor)).clamp(-largest, largest)


# x / y cannot overflow above, for |x| up to the square root of the dtype's largest number.
_SMALLEST = {dtype: torch.finfo(dtype).max ** -0.5 for dtype in FLOATS}
