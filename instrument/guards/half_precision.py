"""Mixed precision: the operations that the config keeps in float32 (`amp.float32_ops`), where half precision overflowed (NS805).

Hazard: which operations autocast itself computes in float32 differs by device; on the CPU sum, pow and layer_norm stay in float16, where a sum of
70,000 ones is inf.
Forward: under autocast, a half-precision result that is not finite although every argument is, is computed again in float32, and stays float32 as
the results of torch's own float32 operations do. A finite result is never touched, so a healthy script does not change by one bit.
Backward: that of the float32 operation.

Operations with a guard of their own ask `in_float32` before they bound anything; the others of the config's list are guarded here. On an
accelerator nothing is looked at: autocast's own list is long there.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from instrument.guards.base import AbstractGuard, Function, Spelling, is_traced, mimic, spelled
from instrument.guards.hand_over import is_handled, judging
from instrument.runtime import RUNTIME, is_plain, is_plain_on_cpu
from latent_drift.numerics.finite import is_finite

_HALF = frozenset({torch.float16, torch.bfloat16})
_is_autocast = torch.is_autocast_enabled
_sum = torch.sum


def in_float32(op: str, original: Function, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any], code: str) -> Tensor | None:
    """The operation in float32 if the config keeps it there, autocast is on and only half precision made the result non-finite; None if not."""
    if not isinstance(out, Tensor) or out.dtype not in _HALF or not _is_autocast(out.device.type) or kwargs.get("out") is not None:
        return None
    run = RUNTIME.run
    if not run.policy.act or op not in run.config.amp.float32_ops or is_finite(out):
        return None
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
    if not all(is_plain(v) and is_finite(v) for v in tensors):
        return None
    wide: Any = original(*(_widened(v) for v in args), **{k: _widened(v) for k, v in kwargs.items()})
    if not isinstance(wide, Tensor) or not is_finite(wide):
        return None
    name = str(out.dtype).removeprefix("torch.")
    message = f"{op} leaves the range of {name} under autocast; it was computed in float32, as amp.float32_ops says"
    run.note(code, "repaired", op, x=tensors[0] if tensors else None, message=message, fired=True)
    return wide


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


class HalfPrecisionGuard(AbstractGuard):
    """Operations of the config's list that no other guard looks at. Outside of autocast, and in float32, they fall through in one branch."""

    code: ClassVar[str] = "NS805"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in ("sum", "cumsum"):
            found += spelled(op, (torch, op), (torch.Tensor, op))
        for op in ("layer_norm", "group_norm", "rms_norm", "softplus"):
            found += spelled(op, (F, op))
        return found

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        op = spelling.op

        def judge(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not _is_autocast("cpu") or not is_plain_on_cpu(out) or out.dtype not in _HALF:
                return out
            seen: float = _sum(out.detach(), dtype=torch.float32).item()
            if math.isfinite(seen) or RUNTIME.run.allows(op):
                return out
            wide = in_float32(op, original, out, args, kwargs, self.code)
            return out if wide is None else wide

        judged = judging(original, spelling, judge)

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if is_traced():
                return original(*args, **kwargs)
            if _is_autocast("cpu") or is_handled(args) or (kwargs and is_handled((*kwargs.values(),))):
                return judged(*args, **kwargs)
            return original(*args, **kwargs)

        return guarded
