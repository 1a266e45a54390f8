"""softmax and log_softmax of a row that has no finite entry (NS401).

Hazard: a row masked throughout with -inf is -inf - (-inf) = NaN, and so is every gradient behind it.
Forward: such a row gives zeros (or the uniform distribution, by `softmax.empty_rows`); every other row is untouched. With `softmax.upcast` rows
in half precision are computed in float32 and rounded once; attention's scores, which leave float16's range first, with them.
Backward: zero for such rows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import AbstractGuard, Function, Spelling, is_traced, mimic, spelled
from instrument.guards.hand_over import call_on, is_foreign, is_handled, judging
from instrument.runtime import HALVES, RUNTIME, is_plain, is_plain_on_cpu

_sum = torch.sum
_SMALL = 32_768  # elements: adding up so many takes no longer than slicing


class SoftmaxGuard(AbstractGuard):
    """softmax and log_softmax. torch.nn.functional's forms, softmin, the modules and attention layers written in Python reach `Tensor.softmax`."""

    code: ClassVar[str] = "NS401"

    def spellings(self) -> list[Spelling]:
        return [s for op in ("softmax", "log_softmax") for s in spelled(op, (torch, op), (torch.Tensor, op), (torch.special, op))]

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        op = spelling.op

        def judge(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if RUNTIME.upcast:
                out = _upcast(original, args, kwargs, out)
            if not is_plain_on_cpu(out):
                return _on_device(original, op, out, args, kwargs) if is_plain(out) and out.numel() else out
            # A bad row is NaN in every entry, so one entry of each row tells; a small tensor is read whole, which is quicker than slicing it. Nothing
            # but NaN can make the sum NaN: no entry is +inf.
            values = out.data
            if values.numel() > _SMALL and (dim := _dim(args, kwargs)) is not None:
                values = values.select(dim, 0)
            told = _sum(values).item()
            return out if told == told else _mended(original, op, out, args, kwargs)

        return judging(original, spelling, judge, _compiled(original))


class AttentionPrecisionGuard(AbstractGuard):
    """scaled_dot_product_attention with `softmax.upcast`; without, it falls through in one branch. torch itself gives a query that may attend to
    nothing zeros."""

    code: ClassVar[str] = "NS401"

    def spellings(self) -> list[Spelling]:
        return spelled("scaled_dot_product_attention", (torch.nn.functional, "scaled_dot_product_attention"))

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        compiled = _compiled(original)

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if is_traced():
                return compiled(*args, **kwargs)
            if not RUNTIME.active:
                return original(*args, **kwargs)
            if is_handled(args) and is_foreign(args, kwargs):
                return call_on(guarded, original, args, kwargs)
            return _upcast(original, args, kwargs) if RUNTIME.upcast else original(*args, **kwargs)

        return guarded


def _compiled(original: Function) -> Function:
    """The pure tensor part for code that Dynamo reads: with `softmax.upcast` the call in float32, its result rounded; else the original."""

    def upcast(*args: Any, **kwargs: Any) -> Any:
        x: Any = args[0] if args else kwargs.get("input", kwargs.get("query"))
        if not RUNTIME.upcast or not isinstance(x, Tensor) or x.dtype not in HALVES or x.device.type == "meta":
            return original(*args, **kwargs)
        if kwargs.get("out") is not None or kwargs.get("dtype") is not None or any(isinstance(v, torch.dtype) for v in args):
            return original(*args, **kwargs)
        wide = {name: _wide(v) for name, v in kwargs.items()}
        return original(*[_wide(v) for v in args], **wide).to(x.dtype)

    return upcast


def _wide(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, Tensor) and value.dtype in HALVES else value


def _upcast(original: Function, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any = None) -> Any:
    """The call on half-precision arguments made float32, its result rounded to their dtype. Where there are none, or another dtype is asked for: the
    call as it was written, or its result `out`."""
    halves = [v for v in (*args, *kwargs.values()) if is_plain(v) and v.dtype.itemsize == 2]
    if not halves or kwargs.get("out") is not None or kwargs.get("dtype") is not None or any(isinstance(v, torch.dtype) for v in args):
        return original(*args, **kwargs) if out is None else out
    dtype = halves[0].dtype
    wide = original(*(_widened(v) for v in args), **{name: _widened(v) for name, v in kwargs.items()})
    return wide.to(dtype)


def _widened(value: Any) -> Any:
    return value.to(torch.float32) if is_plain(value) and value.dtype.itemsize == 2 else value


def _dim(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return dim if type(dim) is int else None


def _row_dim(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The dimension of the rows; torch's implicit choice where none is given."""
    dim = _dim(args, kwargs)
    return dim if dim is not None else (0 if x.dim() in (0, 1, 3) else 1)


def _empty_rows(x: Tensor, dim: int) -> Tensor:
    """Rows without a finite entry and without NaN (which came in, and is passed on), with the row's dimension kept at size 1."""
    values = x.detach()
    infinite = torch.isinf(values)
    return infinite.all() if x.dim() == 0 else infinite.all(dim=dim, keepdim=True)


def _substituted(original: Function, x: Tensor, empty: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], policy: Any) -> Any:
    filled = x.masked_fill(empty, 0.0)
    args, kwargs = ((filled, *args[1:]), kwargs) if args else (args, {**kwargs, "input": filled})
    out = original(*args, **kwargs)
    if policy.empty_rows == "uniform":
        return out
    mended = out.masked_fill(empty, 0.0)
    target = kwargs.get("out")
    return mended if target is None else target.copy_(mended)


def _mended(original: Function, op: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x: Any = args[0] if args else kwargs.get("input")
    run = RUNTIME.run
    if not is_plain(x) or kwargs.get("out") is x:
        return out
    empty = _empty_rows(x, _row_dim(x, args, kwargs))
    rows = int(empty.sum())
    if rows == 0 or run.allows(op):
        return out
    acts = run.policy.act and run.policy.empty_rows != "leave"
    if bool((torch.isposinf(x.detach()) & empty).any()):
        run.search.blame([x])  # a mask is -inf: this row overflowed before, and once it is mended nothing else asks where
    run.note(
        "NS401",
        "repaired" if acts else "observed",
        op,
        x=x,
        message=f"{rows} of {empty.numel()} rows have no finite entry" + (f"; they give {run.policy.empty_rows}" if acts else ", so they are NaN"),
        fired=True,
    )
    return _substituted(original, x, empty, args, kwargs, run.policy) if acts else out


def _on_device(original: Function, op: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Without a read from the device: empty rows are selected away on it, and a flag is left there until the step."""
    x: Any = args[0] if args else kwargs.get("input")
    run = RUNTIME.run
    if not is_plain(x) or kwargs.get("out") is not None:
        return out
    empty = _empty_rows(x, _row_dim(x, args, kwargs))
    acts = run.policy.act and run.policy.empty_rows != "leave"
    run.defer(empty.any(), "NS401", "repaired" if acts else "observed", op, run.site(), x)
    if not acts:
        return out
    return _substituted(original, x, empty, args, kwargs, run.policy)
