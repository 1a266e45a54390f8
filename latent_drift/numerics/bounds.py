"""Bounds whose gradient returns.

The trap: `x.clamp(lower, upper)` has zero gradient outside its bounds, so a parameter that once left
them is stuck there for ever. Three answers, one parameter:

- ``straight_through``: the gradient passes as if there were no bound;
- ``inward``: it passes only where a descent step would bring the value back, so that a value beyond
  the bound cannot run further away;
- ``zero``: torch's own clamp.

`soft_clamp` is the smooth alternative: strictly increasing, its slope decays only like 1/u**2.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import Function

from latent_drift.errors import UsageError
from latent_drift.numerics.dtypes import require_real

Outside = Literal["straight_through", "inward", "zero"]
"""What the gradient does outside a bound."""


class _AttachGradient(Function):
    """The first argument's value with the second one's gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, carrier: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[1].view_as(tangents[1])


class _Inward(Function):
    """Identity whose gradient is dropped where a descent step would lead further outside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, above: Tensor, below: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        above, below = ctx.saved_tensors
        (grad,) = grads
        # Descent subtracts the gradient: above the bound a negative gradient leads away, below it a positive one.
        leads_away = (above & (grad < 0)) | (below & (grad > 0))
        return torch.where(leads_away, torch.zeros_like(grad), grad), None, None


class _InwardForward(_Inward):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].view_as(tangents[0])


_PLAIN = (Tensor, nn.Parameter)  # a subclass may have no numbers to look at


def is_within(x: Tensor, lower: float, upper: float) -> bool:
    """Whether all entries are known to lie in [lower, upper] (NaN lies nowhere); looks only where a look costs two microseconds and no graph is
    being made: False elsewhere, and for no entries."""
    readable = type(x) in _PLAIN and x.is_cpu and not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    if not readable or x.numel() == 0 or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return False
    lowest, highest = torch.aminmax(x.detach())
    return lowest.item() >= lower and highest.item() <= upper


def attach_gradient(value: Tensor, carrier: Tensor) -> Tensor:
    """`value`, unchanged, with the derivative of `carrier` (same shape and dtype).

    *Numerics*: exact also for infinite values, where the usual `carrier + (value - carrier).detach()`
    gives NaN and elsewhere rounds. Reverse mode any number of times, forward mode, vmap and
    `torch.compile(fullgraph=True)`; compiled, the gradient at an infinite carrier is 0.
    """
    if torch.compiler.is_compiling():
        # Dynamo (torch 2.13) takes no Function with a forward-mode rule, and warns of itself for any other.
        zero = torch.where(carrier.isfinite(), carrier - carrier.detach(), torch.zeros_like(carrier))
        return value.detach() + zero
    result: Tensor = _AttachGradient.apply(value.detach(), carrier)  # type: ignore[no-untyped-call]
    return result


def clamp(x: Tensor, lower: float | None = None, upper: float | None = None, outside: Outside = "straight_through") -> Tensor:
    """`x` limited to [lower, upper] (either may be None), any shape, same dtype; NaN stays NaN.

    Args:
        x: a real floating tensor.
        lower: smallest value; it must be representable in `x.dtype` to hold exactly.
        upper: largest value.
        outside: what the gradient does outside: see the module.

    Raises:
        UsageError: `x` is not real floating, `outside` is unknown, or lower > upper.

    *Numerics*: values exact; the gradient inside and on the bounds is that of the identity.
    """
    require_real(x, "clamp")
    if outside not in get_args(Outside):
        raise UsageError(f"clamp: outside must be one of {', '.join(get_args(Outside))}; got {outside!r}")
    if lower is None and upper is None:
        return x
    if lower is not None and upper is not None and lower > upper:
        raise UsageError(f"clamp: lower must not exceed upper; got {lower} > {upper}")
    if outside == "zero":
        return x.clamp(lower, upper)
    carrier = x
    if outside == "inward":
        # bounds compared in x's own dtype, as clamp does
        above = torch.zeros_like(x, dtype=torch.bool) if upper is None else x > upper
        below = torch.zeros_like(x, dtype=torch.bool) if lower is None else x < lower
        function = _Inward if torch.compiler.is_compiling() else _InwardForward
        carrier = function.apply(x, above, below)  # type: ignore[no-untyped-call]
    return attach_gradient(x.detach().clamp(lower, upper), carrier)


def soft_clamp(x: Tensor, lower: float | None = None, upper: float | None = None, margin: float = 1.0) -> Tensor:
    """`x` pressed smoothly into (lower, upper): the identity up to `margin` before a bound, a hyperbola beyond.

    With u = (x - (upper - margin)) / margin > 0 the result is upper - margin / (1 + u), and likewise
    below. Same shape and dtype; NaN stays NaN; +-inf give the bounds.

    Raises:
        UsageError: `x` is not real floating, margin is not positive, or the bounds leave no room for two margins.

    *Numerics*: never outside the bounds; continuous with continuous slope; the slope u margins beyond the
    knee is 1 / (1 + u)**2, so 100 margins outside it is still 1e-4 (tanh there: 1e-87, that is 0).
    """
    require_real(x, "soft_clamp")
    if not margin > 0:
        raise UsageError(f"soft_clamp: margin must be positive; got {margin}")
    if lower is not None and upper is not None and upper - lower < 2 * margin:
        raise UsageError(f"soft_clamp: two margins of {margin} do not fit between lower={lower} and upper={upper}; lower the margin")
    result = x
    if upper is not None:
        beyond = (x - (upper - margin)) / margin
        result = torch.where(beyond > 0, upper - margin / (1 + beyond.clamp(min=0)), result)
    if lower is not None:
        beyond = ((lower + margin) - x) / margin
        result = torch.where(beyond > 0, lower + margin / (1 + beyond.clamp(min=0)), result)
    return result
