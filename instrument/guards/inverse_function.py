"""Inverse trigonometric, hyperbolic and error functions at and beyond the end of their domain, and tan and atan2 where theirs overflow (NS605).

Hazard: acos(1) = 0 has the derivative -1 / sqrt(0); rounding carries a cosine to 1.0000001, and acos of that is NaN. atan2 is finite everywhere,
but its derivative divides by x^2 + y^2, which underflows to 0 from 1e-23 in float32.
Forward: unchanged, unless the config or an earlier failure at the line asks for a bound: then the argument counts as the nearest inside.
Backward: 0 at those elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.result import AbstractElementwiseGuard, Call, magnitude, smallest, total
from instrument.runtime import FLOATS

_hypot = torch.hypot
_functions: dict[str, Callable[[Tensor], Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erfinv": torch.erfinv,
    "ndtri": torch.special.ndtri,
}


@dataclass(frozen=True, slots=True)
class _Domain:
    """Ends of a domain, and by how many units of the dtype's eps a bounded argument stays inside them."""

    low: float
    high: float
    inside_low: float = 0.0
    inside_high: float = 0.0


_DOMAINS = {
    "acos": _Domain(-1.0, 1.0),
    "asin": _Domain(-1.0, 1.0),
    "acosh": _Domain(1.0, math.inf),
    "atanh": _Domain(-1.0, 1.0, 1.0, 1.0),
    "erfinv": _Domain(-1.0, 1.0, 1.0, 1.0),
    "ndtri": _Domain(0.0, 1.0, 1.0, 1.0),
}
_ALIASES = {"acos": "arccos", "asin": "arcsin", "acosh": "arccosh", "atanh": "arctanh"}

_HALF_PI = {dtype: torch.asin(torch.tensor(1.0, dtype=dtype, device="cpu")).item() for dtype in FLOATS}
_PI = {dtype: torch.acos(torch.tensor(-1.0, dtype=dtype, device="cpu")).item() for dtype in FLOATS}
_LARGEST_TAN = {dtype: 0.5 * torch.finfo(dtype).max ** 0.5 for dtype in FLOATS}  # the derivative is 1 + tan^2
_SMALLEST_RADIUS = {dtype: (1.0 / torch.finfo(dtype).max) ** 0.5 * 2.0 for dtype in FLOATS}  # 1 / radius^2 is finite above


class InverseFunctionGuard(AbstractElementwiseGuard):
    """acos, asin, acosh, atanh, erfinv, ndtri and tan, in every spelling."""

    code: ClassVar[str] = "NS605"
    section: ClassVar[str] = "sqrt"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in (*_DOMAINS, "tan"):
            for name in filter(None, (op, _ALIASES.get(op))):
                found += spelled(op, (torch, name), (torch, name + "_"), (torch.Tensor, name), (torch.Tensor, name + "_"), (torch.special, name))
        return found

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if op == "acosh":
            low = smallest(out)
            return low > 0.0 or (low == 0.0 and not out.requires_grad)
        if op == "acos" and out.requires_grad:
            # From both ends at once: the distance from pi/2 is largest there.
            return math.isfinite(total(out)) and smallest(out) > 0.0 and float(torch.amax(out.detach()).item()) < _PI[out.dtype]
        if op == "asin" and out.requires_grad:
            lowest, highest = torch.aminmax(out.detach())
            return bool(-_HALF_PI[out.dtype] < lowest.item() and highest.item() < _HALF_PI[out.dtype])
        largest = magnitude(out)
        if op == "tan":
            return largest < (_LARGEST_TAN[out.dtype] if out.requires_grad else math.inf)
        return largest < math.inf

    def message(self, call: Call) -> str:
        return f"{call.op} at or beyond the end of its domain"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        x: Tensor = operands[0]
        if op == "tan":
            return ~torch.isfinite(1.0 + out * out)
        domain = _DOMAINS[op]
        return (x <= domain.low) | (x >= domain.high) | ~torch.isfinite(out)

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        (x,) = operands
        if op == "tan":
            return out.clamp(-torch.finfo(out.dtype).max, torch.finfo(out.dtype).max)
        domain, eps = _DOMAINS[op], torch.finfo(out.dtype).eps
        high = domain.high if math.isinf(domain.high) else domain.high - domain.inside_high * eps
        return _functions[op](x.to(out.dtype).clamp(domain.low + domain.inside_low * eps, high))


class AngleGuard(AbstractElementwiseGuard):
    """atan2, in every spelling."""

    code: ClassVar[str] = "NS605"
    section: ClassVar[str] = "sqrt"
    operands: ClassVar[tuple[str, ...]] = ("input", "other")

    def spellings(self) -> list[Spelling]:
        return [s for n in ("atan2", "arctan2") for s in spelled("atan2", (torch, n), (torch.Tensor, n), (torch.Tensor, n + "_"))]

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not out.requires_grad:
            return True  # finite for finite arguments
        y, x = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(self.operands))
        return bool(smallest(_hypot(y.detach(), x.detach())) > _SMALLEST_RADIUS[out.dtype])

    def message(self, call: Call) -> str:
        return "atan2 of two numbers that are 0 or too small"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        small: Tensor = ~(_hypot(*operands) > _SMALLEST_RADIUS[out.dtype])
        return small

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        return torch.zeros_like(out)
