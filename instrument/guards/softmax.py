"""softmax and log_softmax of a row that has no finite entry (NS401).

Hazard: a row masked throughout with -inf is -inf - (-inf) = NaN, and so is every gradient behind it.
Forward: such a row gives zeros (or the uniform distribution, by `softmax.empty_rows`); every other row is untouched.
Backward: zero for such rows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import AbstractGuard, Function, Spelling, is_compiling, mimic, spelled
from instrument.runtime import RUNTIME, function_modes, is_plain, without_function_modes

_SMALL = 16_384
_amax = torch.amax


class SoftmaxGuard(AbstractGuard):
    """softmax and log_softmax. torch.nn.functional's forms, softmin, the modules and attention layers written in Python reach `Tensor.softmax`."""

    code: ClassVar[str] = "NS401"

    def spellings(self) -> list[Spelling]:
        return [s for op in ("softmax", "log_softmax") for s in spelled(op, (torch, op), (torch.Tensor, op), (torch.special, op))]

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        op = spelling.op

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            if is_compiling() or not RUNTIME.active or not is_plain(out) or not out.numel():
                return out
            if not out.is_cpu:
                return _on_device(original, op, out, args, kwargs)
            if function_modes():
                with without_function_modes():
                    return judged(out, args, kwargs)
            return judged(out, args, kwargs)

        def judged(out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # A bad row is NaN in every entry, so one entry of each row tells; a small tensor is read whole, which is quicker than slicing it.
            values = out.detach() if out.requires_grad else out
            dim = _dim(args, kwargs)
            told = (_amax(values) if dim is None or values.numel() <= _SMALL else values.select(dim, 0).sum(dtype=torch.float32)).item()
            return out if told == told else _mended(original, op, out, args, kwargs)

        return guarded


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
