"""Division by 0, or by a number so small that the quotient or its derivative overflows (NS304; NS303 where the divisor is a norm).

Hazard: a / 0 is inf or NaN. Chosen away by a `where`, it still sends 0 * inf = NaN back. The derivative with respect to the divisor is a / b^2,
which overflows in float32 from b of about 1e-19 for a of 1, in float16 from 0.004.
Forward: unchanged (a quotient of inf that is only compared is legal), unless the config or an earlier failure at the line asks for a bound: then
the divisor counts as the smallest that the config lets a division see, with its own sign.
Backward: 0 at those elements and in that operand only; the other operand's gradient stays torch's own.

`1.0 / x` is a reciprocal in torch, which `reciprocal` guards. Division by an ordinary Python number cannot be at fault and falls through.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Function, Spelling, is_traced, mimic, spelled
from instrument.guards.hand_over import is_handled, judging
from instrument.guards.result import AbstractElementwiseGuard, Call, magnitude
from instrument.runtime import RUNTIME, is_plain_on_cpu

_div = torch.div
_reciprocal = torch.reciprocal
_NUMBERS = frozenset({float, int})

_LARGE_QUOTIENT = {torch.float16: 0.0, torch.bfloat16: 2.0**32, torch.float32: 2.0**32, torch.float64: 2.0**256}
"""From here on a quotient is worth a look at its divisor: the fourth root of the dtype's largest number (a smaller quotient whose derivative
overflows is that of two numbers below 1e-19). float16 has no room between ordinary and too large, so there the derivative itself is looked at."""

_NORMS = ("NormBackward", "HypotBackward")
_BETWEEN = ("Expand", "Clamp", "Unsqueeze", "View", "AddBackward0", "Maximum", "UnsafeView", "Reshape", "_Result")


class DivisionGuard(AbstractElementwiseGuard):
    """`/`, div, divide, true_divide, and remainder and fmod, whose result and gradient hold a quotient too."""

    code: ClassVar[str] = "NS304"
    section: ClassVar[str] = "division"
    operands: ClassVar[tuple[str, ...]] = ("input", "other")

    def spellings(self) -> list[Spelling]:
        found = []
        for op, names in {"div": ("div", "divide", "true_divide"), "remainder": ("remainder",), "fmod": ("fmod",)}.items():
            for name in names:
                found += spelled(op, (torch, name), (torch.Tensor, name), (torch.Tensor, name + "_"))
        found += spelled("div", (torch.Tensor, "__truediv__"), (torch.Tensor, "__div__")) + spelled("remainder", (torch.Tensor, "__mod__"))
        found += [Spelling(torch.Tensor, name, "div", inplace=True) for name in ("__itruediv__", "__idiv__")]
        return [*found, Spelling(torch.Tensor, "__imod__", "remainder", inplace=True)]

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        if spelling.inplace:
            return self._in_place(original, spelling)
        op = spelling.op

        def judge(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if len(args) > 1 and type(args[1]) in _NUMBERS and args[1]:
                return out  # it came through somebody's handler
            if not is_plain_on_cpu(out) or not out.numel() or self.is_clear(op, out, args, kwargs):
                return out
            return self.answer(Call(original, op, args, kwargs, out))

        judged = judging(original, spelling, judge)

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if is_traced() or (len(args) > 1 and type(args[1]) in _NUMBERS and args[1] and not is_handled(args)):
                return original(*args, **kwargs)
            return judged(*args, **kwargs)

        return guarded

    def _in_place(self, original: Function, spelling: Spelling) -> Function:
        for_tensors = super()._in_place(original, spelling)

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if len(args) > 1 and type(args[1]) in _NUMBERS and args[1]:
                return original(*args, **kwargs)
            return for_tensors(*args, **kwargs)

        return guarded

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        largest = magnitude(out)
        if not largest < math.inf:
            return False
        divisor = args[1] if len(args) > 1 else kwargs.get("other")
        if not out.requires_grad or not isinstance(divisor, Tensor) or op != "div" or not divisor.requires_grad:
            return True
        limit = _LARGE_QUOTIENT[out.dtype]
        return largest < limit if limit else magnitude(_div(out.detach(), divisor.detach())) < math.inf

    def code_for(self, call: Call) -> str:
        divisor = call.argument(1, "other")
        return "NS303" if isinstance(divisor, Tensor) and _is_norm(divisor) else self.code

    def message(self, call: Call) -> str:
        if call.op != "div":
            return f"{call.op} by 0"
        return "division by a norm that is 0 or too small" if self.code_for(call) == "NS303" else "division by 0 or by a number too small"

    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        divisor = _as_tensor(operands[1], out)
        return ~(torch.isfinite(_reciprocal(divisor)) & torch.isfinite(_div(out, divisor)))

    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        if op != "div":
            return torch.zeros_like(out)
        divisor = _as_tensor(operands[1], out)
        floor = RUNTIME.run.config.precision[out.dtype].division_eps
        largest = torch.finfo(out.dtype).max
        return _div(_as_tensor(operands[0], out), torch.copysign(divisor.abs().clamp(min=floor), divisor)).clamp(-largest, largest)


def _as_tensor(value: Any, like: Tensor) -> Tensor:
    return value.to(like.dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=like.dtype, device=like.device)


def _is_norm(divisor: Tensor) -> bool:
    """Whether the divisor was made by a norm, as far as the graph tells: through at most four operations that only reshape or floor it."""
    node = divisor.grad_fn
    for _ in range(5):
        if node is None:
            return False
        name = node.name()
        if any(part in name for part in _NORMS):
            return True
        if not name.startswith(_BETWEEN) or not node.next_functions:
            return False
        node = node.next_functions[0][0]
    return False
