"""Powers: overflow, the corner at 0, and a negative base with a broken exponent (NS206).

Hazard: x ** 2 is inf from 1.8e19 in float32 (256 in float16), 10 ** x from 38.5; x ** 0.5 at 0 has an infinite derivative; the derivative with
respect to the exponent holds log(base), which is NaN for a base below 0 although (-2.0) ** 2.0 is 4.
Forward: where a large base or exponent overflows, the argument counts as the largest whose power and derivative are finite (the base, or the
exponent where the base is a number). A pole (0 ** -1) or NaN ((-1) ** 0.5) is left, unless the config or an earlier failure at the line asks
for a bound.
Backward: at the bound, as for exp (`exp.gradient_outside`); elsewhere 0 where it would be NaN or Inf, in that operand only.

`2.0 ** x` is torch.pow(2.0, x).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Function, Spelling, spelled
from instrument.guards.gradient_filter import again, can_filter, filtered, with_own_numbers
from instrument.guards.result import AbstractElementwiseGuard, Call, magnitude, smallest, total
from instrument.runtime import FLOATS, RUNTIME

_pow = torch.pow
_log = torch.log
_exp = torch.exp
_div = torch.div
_NUMBERS = frozenset({float, int})

_FOURTH_ROOT = {dtype: torch.finfo(dtype).max ** 0.25 for dtype in FLOATS}
_THOUSANDTH = {dtype: torch.finfo(dtype).max * 1e-3 for dtype in FLOATS}


class _Bounded(torch.autograd.Function):
    """`value` where `over`, with the gradient that arrives there passed on as if it were `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, over: Tensor, value: Tensor) -> Tensor:
        return torch.where(over, value, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, None


class PowerGuard(AbstractElementwiseGuard):
    """`**`, pow, float_power and square, in every spelling."""

    code: ClassVar[str] = "NS206"
    section: ClassVar[str] = "sqrt"
    operands: ClassVar[tuple[str, ...]] = ("input", "exponent")

    def spellings(self) -> list[Spelling]:
        found = spelled("pow", (torch, "pow"), (torch.Tensor, "pow"), (torch.Tensor, "pow_"), (torch.Tensor, "__pow__"))
        found += spelled("float_power", (torch, "float_power"), (torch.Tensor, "float_power"), (torch.Tensor, "float_power_"))
        found += spelled("square", (torch, "square"), (torch, "square_"), (torch.Tensor, "square"), (torch.Tensor, "square_"))
        return [*found, Spelling(torch.Tensor, "__ipow__", "pow", inplace=True)]

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        if spelling.op == "square":
            return _SQUARE.stand_in(original, spelling)
        return super().stand_in(original, spelling)

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        exponent: Any = args[1] if len(args) > 1 else kwargs.get("exponent")
        kind = type(exponent)
        if kind in _NUMBERS:
            if exponent >= 1.0:
                run = RUNTIME.run
                if run.armed.tightness < 2:
                    size = total(out)
                    run.ranges.see(op, size)
                    return math.isfinite(size)
                return magnitude(out) < run.armed.limit(out.dtype)
            if exponent > 0.0:
                low = smallest(out)
                return low > 0.0 or (low == 0.0 and not out.requires_grad)
            # The derivative grows as the result to the power 1 + 1/|p|: below this magnitude it cannot overflow.
            return bool(exponent == 0.0 or magnitude(out) < torch.finfo(out.dtype).max ** (exponent / (exponent - 1.0)) / max(1.0, -exponent))
        if not out.requires_grad:
            return math.isfinite(total(out))
        base: Any = args[0] if args else kwargs.get("input")
        if type(base) in _NUMBERS:
            return bool(base > 0.0 and magnitude(out) < _THOUSANDTH[out.dtype])
        if not isinstance(base, Tensor) or not isinstance(exponent, Tensor) or not base.is_floating_point() or not base.numel():
            return False
        return bool(smallest(base) > 1.0 / _FOURTH_ROOT[out.dtype] and magnitude(out) < _FOURTH_ROOT[out.dtype])

    def message(self, call: Call) -> str:
        return f"{call.op} beyond the dtype's range, at 0, or of a negative number"

    def settled(self, call: Call) -> Any:
        run = RUNTIME.run
        values = [self.value(call, i) for i in range(2)]
        if not run.policy.act or any(isinstance(v, Tensor) and v.is_complex() for v in values) or any(v is None for v in values):
            return super().settled(call)
        out: Tensor = call.out
        base, exponent = (v.detach() if isinstance(v, Tensor) else torch.tensor(float(v)) for v in values)
        a, p = base.double(), exponent.double()
        pole = (a.abs() < torch.finfo(out.dtype).eps) & (p < 0.0)
        site = run.site()
        armed = run.armed.holds(site)
        large = out.detach().abs() > run.armed.limit(out.dtype) if armed else torch.isinf(out.detach())
        over = large & torch.isfinite(a) & torch.isfinite(p) & ~pole
        if not bool(over.any()):
            return super().settled(call)
        shown = next((v for v in values if isinstance(v, Tensor)), out)
        self.note_bounded(call, over, shown, site)
        return super().settled(self._inside(call, values, (a, p), over, run.armed.share if armed else 1.0))

    def value(self, call: Call, position: int) -> Any:
        """An operand: the base or the exponent."""
        return call.argument(position, self.operands[position])

    def _inside(self, call: Call, values: list[Any], doubles: tuple[Tensor, Tensor], over: Tensor, share: float) -> Call:
        """The call with an argument that is inside its range at `over`. What is not finite even so (a negative number to a power) is at the
        largest finite number."""
        out: Tensor = call.out
        a, p = doubles
        limit = math.log(torch.finfo(out.dtype).max) * share
        # What rounding the argument to its dtype, and this arithmetic in float64, may add to the logarithm of the result.
        eps, slack = torch.finfo(out.dtype).eps, 4.0 * torch.finfo(torch.float64).eps * limit
        position = 0 if isinstance(values[0], Tensor) else 1
        if position == 0:
            # For |p| a^(p-1) to be finite as well: log|p| + (1 - 1/p) log(result) is at most the limit.
            margin = _div(_log(p.abs()) - limit / p, (1.0 - 1.0 / p).clamp(min=0.1))
            if isinstance(values[1], Tensor) and values[1].requires_grad:
                margin = torch.maximum(margin, _log((limit / p).abs()))  # and a^p log(a)
            bound = torch.copysign(_exp(_div(limit - margin.clamp(min=0.0) - eps * (p.abs() + 2.0) - slack, p)), a)
        else:
            log_a = _log(a.abs())
            bound = _div(limit - _log(log_a.abs()).clamp(min=0.0) - eps * limit - slack, log_a)
        x: Tensor = values[position]
        over = over.expand_as(out)
        told = self.told(call, x, RUNTIME.run.site())
        if x.dtype is not out.dtype and x.requires_grad and can_filter():
            x = filtered(x, over.float().sum_to_size(x.shape) > 0.0, told).to(out.dtype)
        whole = x.to(out.dtype).expand_as(out)
        bound = bound.expand_as(out).to(out.dtype)
        straight = RUNTIME.run.policy.straight_through
        argument = _Bounded.apply(whole, over, bound) if straight else torch.where(over, bound, whole)  # type: ignore[no-untyped-call]
        key = call.key(position, self.operands[position])
        kwargs = {name: value for name, value in call.kwargs.items() if name != "out"}
        inner = again(call.original, call.args, kwargs, {key: argument})
        largest = torch.finfo(out.dtype).max
        inside = inner.detach().nan_to_num(largest, largest, -largest)
        numbers = torch.where(over, inside, out.detach())
        if call.kwargs.get("out") is not None:
            return Call(call.original, call.op, call.args, call.kwargs, out.copy_(numbers))
        args = tuple(argument if i == key else v for i, v in enumerate(call.args))
        kwargs = {name: argument if name == key else value for name, value in kwargs.items()}
        return Call(call.original, call.op, args, kwargs, with_own_numbers(inner, numbers, over, told))

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        a, p = (v.to(out.dtype) if isinstance(v, Tensor) else torch.tensor(v, dtype=out.dtype) for v in operands)
        # In the operands' own dtypes: float_power works in float64, and its gradient returns from there.
        by_base, by_exponent = (
            g.to(v.dtype) if isinstance(v, Tensor) else g for g, v in zip((p * _pow(a, p - 1.0), out * _log(a.abs())), operands, strict=True)
        )
        return (a <= 0.0) | ~torch.isfinite(by_base) | ~torch.isfinite(by_exponent)

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        largest = torch.finfo(out.dtype).max
        return torch.nan_to_num(out, nan=0.0, posinf=largest, neginf=-largest)


class _SquareGuard(PowerGuard):
    """square is pow with the exponent 2 and no second operand."""

    operands: ClassVar[tuple[str, ...]] = ("input",)

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        return super(PowerGuard, self).stand_in(original, spelling)

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        size = total(out)
        RUNTIME.run.ranges.see(op, size)
        return math.isfinite(size)

    def value(self, call: Call, position: int) -> Any:
        return call.argument(0, "input") if position == 0 else 2.0

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        return ~torch.isfinite(out)


_SQUARE = _SquareGuard()
