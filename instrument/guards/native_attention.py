"""The fused attention of nn.MultiheadAttention in evaluation, for a query that may attend to nothing (NS401).

Everything else of attention is safe already: scaled_dot_product_attention gives zeros for such a row, and the layers written in Python use the
guarded softmax. Only the fused inference path returns NaN.
Forward: such a row attends to nothing, so its output is the output projection's bias, and its weights are zeros. Other rows are untouched.
Backward: none, the path is taken without gradients only.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from instrument.guards.base import AbstractGuard, Function, Spelling, is_traced, mimic, spelled
from instrument.runtime import RUNTIME, is_plain_on_cpu, without_function_modes
from latent_drift.numerics.finite import is_finite

_amax = torch.amax


class NativeAttentionGuard(AbstractGuard):
    """`torch._native_multi_head_attention`, which only nn.MultiheadAttention calls."""

    code: ClassVar[str] = "NS401"

    def spellings(self) -> list[Spelling]:
        return spelled("multi_head_attention", (torch, "_native_multi_head_attention"))

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            out: Any = result[0] if isinstance(result, tuple) else None
            if is_traced() or not RUNTIME.active or not is_plain_on_cpu(out) or not out.numel():
                return result
            with without_function_modes():
                told = _amax(out).item()
                if told == told:
                    return result
                return _mended(result, args)

        return guarded


def _mended(result: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    run = RUNTIME.run
    out, weights = result[0], result[1]
    tensors = [a for a in args[:9] if isinstance(a, torch.Tensor)]
    bias = args[8] if len(args) > 8 else None
    if bias is None or not all(is_finite(t) for t in tensors):
        return result
    empty = torch.isnan(out).all(-1, keepdim=True)
    acts = run.policy.act and run.policy.empty_rows != "leave"
    message = f"{int(empty.sum())} of {empty.numel()} queries may attend to nothing"
    run.note("NS401", "repaired" if acts else "observed", "multi_head_attention", x=out, message=message, fired=True)
    if not acts:
        return result
    mended = torch.where(empty, bias, out)
    if isinstance(weights, torch.Tensor) and weights.numel():
        weights = torch.where(torch.isnan(weights).all(-1, keepdim=True), torch.zeros((), dtype=weights.dtype), weights)
    return (mended, weights, *result[2:])
