"""Keeping NaN and Inf out of a gradient at named elements only, at every order of derivative.

An operation at its edge (division by 0, equal eigenvalues) has a derivative that is infinite or undefined, and whatever gradient arrives,
0 included, what leaves is NaN or Inf. The operation is evaluated once more on arguments that pass through a filter: on the way back, elements
that are at the edge *and* not finite become 0. All others are torch's own, bit for bit, also those at the edge that torch gets right.

The gradient of that gradient flows back through the same operation's formulas, so the filter filters its own derivative, and the result
carries a filter for what would flow to the incoming gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from instrument.guards.base import Function
from instrument.guards.dropped_gradient import is_dropped
from instrument.runtime import PLAIN_TYPES, without_function_modes

Told = Callable[[Tensor], None]
"""Called with the elements of a gradient that were set to 0 (bool, of its shape); there is at least one."""

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # type: ignore[attr-defined]
_dispatch_keys = torch._C._dispatch_keys


def _is_readable(gradient: Tensor) -> bool:
    """False where a batched or transformed backward is under way (`is_grads_batched`): then nothing is read and nothing nested."""
    if type(gradient) not in PLAIN_TYPES or gradient.layout is not torch.strided or gradient.is_meta:
        return False
    # The older vmap, which `is_grads_batched` uses, has a dispatch key but no name in Python.
    return not _is_wrapped(gradient) and "Batched" not in str(_dispatch_keys(gradient))


class _Filter(torch.autograd.Function):
    """Identity; on the way back elements in `at` that are not finite become 0, and `told` hears of it, unless they are dropped behind anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor, told: Told) -> Tensor:
        ctx.save_for_backward(at)
        ctx.told = told
        ctx.set_materialize_grads(False)
        return x.clone()  # not a view: a script may write into `x` later

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if gradient is None:
            return None, None, None
        (at,) = ctx.saved_tensors
        with without_function_modes():
            if not _is_readable(gradient):
                return torch.where(at & ~torch.isfinite(gradient), 0.0, gradient), None, None
            bad = at & ~torch.isfinite(gradient.detach())
            any_bad = bool(bad.any()) and not is_dropped(ctx.next_functions[0], gradient)
            if torch.is_grad_enabled():
                gradient = _Filter.apply(gradient, at, ctx.told)  # type: ignore[no-untyped-call]
            if not any_bad:
                return gradient, None, None
            ctx.told(bad)
            return torch.where(bad, 0.0, gradient), None, None


class _Result(torch.autograd.Function):
    """The numbers of `value` with the gradient of `inner`; what the next order sends to the incoming gradient is filtered at `at`."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, value: Tensor, at: Tensor, told: Told) -> Tensor:
        ctx.save_for_backward(at)
        ctx.told = told
        ctx.set_materialize_grads(False)
        return value.clone()  # not a view: a script may write into it

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if gradient is not None and torch.is_grad_enabled() and _is_readable(gradient):
            gradient = _Filter.apply(gradient, ctx.saved_tensors[0], ctx.told)  # type: ignore[no-untyped-call]
        return gradient, None, None, None


def can_filter() -> bool:
    """False under forward-mode differentiation, whose tangents a filter would lose."""
    return bool(forward_ad._current_level < 0)


def filtered(x: Tensor, at: Tensor, told: Told) -> Tensor:
    """`x` as an argument of the operation: its gradient is filtered at `at` (a bool tensor of the shape of `x`)."""
    result: Tensor = _Filter.apply(x, at, told)  # type: ignore[no-untyped-call]
    return result


def again(original: Function, args: tuple[Any, ...], kwargs: dict[str, Any], replaced: Mapping[int | str, Tensor]) -> Any:
    """`original` on the same arguments, those at the given positions or names replaced."""
    new_args = tuple(replaced.get(i, value) for i, value in enumerate(args))
    return original(*new_args, **{name: replaced.get(name, value) for name, value in kwargs.items()})


def with_own_numbers(inner: Tensor, value: Tensor, at: Tensor, told: Told) -> Tensor:
    """torch's first result `value` on the graph of `inner`, the same operation on filtered arguments."""
    if not inner.requires_grad:
        return value
    result: Tensor = _Result.apply(inner, value.detach(), at, told)  # type: ignore[no-untyped-call]
    return result
