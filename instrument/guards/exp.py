"""Overflow of the exponential family: exp, exp2, expm1, sinh, cosh (NS201).

Hazard: exp(x) is inf from x of about 88.7 in float32 (11.1 in float16), and its gradient with it.
Forward: an argument beyond the bound counts as the bound. Everything inside is untouched, bit for bit.
Backward: outside the bound the gradient is 0, or that at the bound (`exp.gradient_outside`), so that the argument comes back.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import AbstractGuard, Function, Spelling, is_compiling, is_traced, mimic, spelled
from instrument.guards.half_precision import in_float32
from instrument.guards.hand_over import call_on, is_foreign, is_handled
from instrument.guards.result import total
from instrument.policy import Policy
from instrument.runtime import FLOATS, PLAIN_TYPES, RUNTIME, function_modes, is_plain, is_plain_on_cpu, without_function_modes
from latent_drift.numerics.limits import largest_exp2_argument, largest_exp_argument, largest_sinh_argument, round_down

_PLAIN_FORM = {"exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "sinh": torch.sinh, "cosh": torch.cosh}
_OWN_LIMIT = {
    "exp": largest_exp_argument,
    "exp2": largest_exp2_argument,
    "expm1": largest_exp_argument,
    "sinh": largest_sinh_argument,
    "cosh": largest_sinh_argument,
}
_ODD = ("sinh",)
_EVEN = ("cosh",)
_amax = torch.amax
_amin = torch.amin


def argument_bound(op: str, dtype: torch.dtype, policy: Policy, *, tightness: int) -> float:
    """The largest argument of `op` in `dtype` under this policy; each step of `tightness` leaves half of the exponent's range for what follows.

    At the dtype's own limit a sum of two such results is inf already. Where that has happened, half the range keeps sums and products of results
    finite (exp(44.4) = 1.8e19 in float32).
    """
    own = _OWN_LIMIT[op](dtype)
    exponent = policy.exp_max[dtype]  # in terms of e
    if tightness:
        exponent = min(exponent, largest_exp_argument(dtype) * 0.5**tightness)
    if exponent >= largest_exp_argument(dtype):
        return own
    if op == "exp2":
        exponent /= math.log(2.0)
    elif op in _ODD + _EVEN:
        exponent += math.log(2.0)
    return min(round_down(exponent, dtype), own)


def bounds_by_op(policy: Policy, *, tightness: int) -> dict[str, dict[torch.dtype, float]]:
    """`argument_bound` of every operation and dtype."""
    return {op: {dtype: argument_bound(op, dtype, policy, tightness=tightness) for dtype in FLOATS} for op in _PLAIN_FORM}


def thresholds_by_op(bounds: dict[str, dict[torch.dtype, float]]) -> dict[str, dict[torch.dtype, float]]:
    """The result from which an argument may lie beyond its bound: the operation at the bound, in its dtype (the exact question is asked then).

    At the dtype's own limit that is its largest number: only inf is beyond.
    """
    table: dict[str, dict[torch.dtype, float]] = {}
    for op, by_dtype in bounds.items():
        table[op] = {}
        for dtype, bound in by_dtype.items():
            at_bound = _PLAIN_FORM[op](torch.tensor(bound, dtype=dtype, device="cpu")).double().item()
            table[op][dtype] = torch.finfo(dtype).max if bound >= _OWN_LIMIT[op](dtype) else at_bound * (1.0 - 2.0 * torch.finfo(dtype).eps)
    return table


class StraightThroughBound(torch.autograd.Function):
    """x bounded to [lower, upper]; the gradient passes as if it were not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: float, upper: float) -> Tensor:
        return x.clamp(lower, upper)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None


def bounded(x: Tensor, lower: float, upper: float, *, straight_through: bool) -> Tensor:
    """x inside [lower, upper], each element that was inside bitwise the same; NaN stays NaN."""
    if straight_through and x.requires_grad and torch.is_grad_enabled():
        result: Tensor = StraightThroughBound.apply(x, lower, upper)  # type: ignore[no-untyped-call]
        return result
    return x.clamp(lower, upper)


def _lower(op: str, upper: float) -> float:
    return -upper if op in _ODD + _EVEN else -math.inf


class ExpGuard(AbstractGuard):
    """exp and its kin, in every spelling."""

    code: ClassVar[str] = "NS201"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in _PLAIN_FORM:
            places = [(torch, op), (torch, op + "_"), (torch.Tensor, op), (torch.Tensor, op + "_"), (torch.special, op)]
            found += spelled(op, *places)
        return found

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        return _inplace(original, spelling) if spelling.inplace else _functional(original, spelling)


def _functional(original: Function, spelling: Spelling) -> Function:
    op = spelling.op
    odd = op in _ODD
    never_negative = op in ("exp", "exp2", "cosh")

    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return _compiled(original, op, args, kwargs)
        if (is_handled(args) or (kwargs and is_handled((*kwargs.values(),)))) and RUNTIME.active and is_foreign(args, kwargs):
            return call_on(guarded, original, args, kwargs)
        x: Any = args[0] if args else kwargs.get("input")
        if type(x) not in PLAIN_TYPES or not x.is_cpu:
            if is_compiling():
                return _compiled(original, op, args, kwargs)
            if RUNTIME.active and is_plain(x):
                return _on_device(original, op, x, args, kwargs)
        out = original(*args, **kwargs)
        if RUNTIME.active and is_plain_on_cpu(out) and out.numel():
            if function_modes():
                with without_function_modes():
                    return judged(out, args, kwargs)
            return judged(out, args, kwargs)
        return out

    def judged(out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = out.data if out.requires_grad else out
        threshold = RUNTIME.run.armed.exp_threshold[op][out.dtype]
        ranges = RUNTIME.run.ranges
        # Where nothing is negative a sum is at least the largest element. In half types it is four times as fast, and other guards ask for sums too:
        # the code of an operation that nobody else calls in a step is not in the caches, which costs more than what it computes.
        if never_negative:
            size = total(values)
            ranges.see(op, size)
            if size <= threshold:
                return out
            size = _amax(values).item()
        else:
            size = _amax(values).item()
            ranges.see(op, size)
        if size <= threshold and not (odd and _amin(values).item() < -threshold):
            return out
        return _mended(original, op, out, args, kwargs)

    return guarded


def _over(x: Tensor, dtype: torch.dtype, lower: float, upper: float) -> Tensor:
    values = x.detach().to(dtype)
    over = values > upper
    return over if lower == -math.inf else over | (values < lower)


def _with_first(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})


def _mended(original: Function, op: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0] if args else kwargs["input"]
    run = RUNTIME.run
    if kwargs.get("out") is x or not is_plain(x):
        return out
    site = run.site()
    if not run.allows(op, site):
        wide = in_float32(op, original, out, args, kwargs, "NS201")
        if wide is not None:
            return wide
    upper = argument_bound(op, out.dtype, run.policy, tightness=run.armed.tightness if run.armed.holds(site) else 0)
    lower = _lower(op, upper)
    over = _over(x, out.dtype, lower, upper)
    if not bool(over.any()) or run.allows(op, site):
        return out  # NaN that came in, or a value that only rounding brought to the threshold
    _note(run, op, x, over, out.dtype, upper, site)
    if not run.policy.act:
        return out
    args, kwargs = _with_first(bounded(x.to(out.dtype), lower, upper, straight_through=run.policy.straight_through), args, kwargs)
    return original(*args, **kwargs)


def _note(run: Any, op: str, x: Tensor, over: Tensor, dtype: torch.dtype, upper: float, site: Any) -> None:
    acted = run.policy.act
    count = int(over.sum())
    trend = run.ranges.argument_trend(op, float(x.detach()[over].abs().amax()))
    run.note(
        "NS201",
        "bounded" if acted else "observed",
        op,
        site=site,
        x=x,
        message=f"{op} of {count} of {x.numel()} elements overflows {str(dtype).removeprefix('torch.')} (largest argument {upper:.6g})"
        + ("; the argument was bounded there" if acted else ""),
        fired=True,
        trend=trend,
    )


def _inplace(original: Function, spelling: Spelling) -> Function:
    op = spelling.op
    plain_form = _PLAIN_FORM[op]

    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if is_handled(args) and RUNTIME.active and not is_traced() and is_foreign(args, kwargs):
            return call_on(guarded, original, args, kwargs)
        x: Any = args[0] if args else kwargs.get("input")
        if is_compiling() or not (RUNTIME.active and is_plain(x) and x.numel()) or not x.is_cpu:
            return original(*args, **kwargs)
        # The argument is overwritten, so it has to be looked at first.
        with without_function_modes():
            run = RUNTIME.run
            values = x.detach()
            largest = run.armed.smallest_exp_bound[op][x.dtype]
            size = _amax(values).item()
            run.ranges.see(op + "_", size)
            if size <= largest and (op not in _ODD + _EVEN or _amin(values).item() >= -largest):
                return original(*args, **kwargs)
            site = run.site()
            upper = argument_bound(op, x.dtype, run.policy, tightness=run.armed.tightness if run.armed.holds(site) else 0)
            over = _over(x, x.dtype, _lower(op, upper), upper)
            if not bool(over.any()) or run.allows(op, site):
                return original(*args, **kwargs)
            _note(run, op + "_", x, over, x.dtype, upper, site)
            if not run.policy.act or (x.is_leaf and x.requires_grad and torch.is_grad_enabled()):
                return original(*args, **kwargs)
            return x.copy_(plain_form(bounded(x, _lower(op, upper), upper, straight_through=run.policy.straight_through)))

    return guarded


def _on_device(original: Function, op: str, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Without a read from the device: the bound is always applied (it changes nothing inside), and a flag is left there until the step."""
    run = RUNTIME.run
    # Under autocast the result of the exponentials is float32 whatever comes in.
    dtype = torch.float32 if x.dtype is not torch.float64 and torch.is_autocast_enabled(x.device.type) else x.dtype
    if x.numel() == 0:
        return original(*args, **kwargs)
    site = run.site()
    upper = argument_bound(op, dtype, run.policy, tightness=run.armed.tightness if run.armed.holds(site) else 0)
    lower = _lower(op, upper)
    over = _over(x, dtype, lower, upper)
    run.defer(over.any(), "NS201", "bounded" if run.policy.act else "observed", op, site, x)
    if run.policy.act:
        args, kwargs = _with_first(
            bounded(x if dtype is x.dtype else x.to(dtype), lower, upper, straight_through=run.policy.straight_through), args, kwargs
        )
    return original(*args, **kwargs)


def _compiled(original: Function, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The pure tensor part, for code that Dynamo or export is tracing: no branch on data, no log."""
    x: Any = args[0] if args else kwargs.get("input")
    if (
        RUNTIME.bounds is not None
        and isinstance(x, Tensor)
        and x.dtype in FLOATS
        and kwargs.get("out") is None
        and x.device.type != "meta"  # Dynamo works out shapes by running torch's own Python forms on meta tensors
        and not torch.is_autocast_enabled(x.device.type)
    ):
        upper = RUNTIME.bounds[op][x.dtype]
        x = x.clamp(-upper, upper) if op in _ODD + _EVEN else x.clamp(max=upper)
        args, kwargs = _with_first(x, args, kwargs)
    return original(*args, **kwargs)
