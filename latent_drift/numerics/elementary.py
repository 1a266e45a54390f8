"""exp, log, division, sqrt and their kin with defined values and gradients at the edges.

Every function takes real floating tensors of any shape, keeps shape and dtype, lets NaN through
(a bound that hides NaN hides a bug), differentiates twice, and compiles without graph breaks.
Bounds are explicit arguments; left out, they are the dtype's own limits. Formulas of several steps
are evaluated in float32 for the half types and rounded once. Error bounds in ulp are held by
`tests/numerics/test_elementary.py` against mpmath over the whole range of each dtype.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.numerics.bounds import Outside, attach_gradient, clamp, is_within
from latent_drift.numerics.dtypes import accumulation_dtype, require_real
from latent_drift.numerics.limits import largest_exp_argument, smallest_reciprocal


def exp(x: Tensor, lower: float | None = None, upper: float | None = None, outside: Outside = "straight_through") -> Tensor:
    """exp(x), never inf: the argument is bounded at `upper`, by default the largest one whose exp is finite in `x.dtype`.

    Args:
        x: any shape.
        lower: optional lower bound on the argument (none by default: exp underflows to 0 harmlessly).
        upper: upper bound on the argument; a looser one than the dtype's own is tightened to it.
        outside: gradient beyond a bound; straight through, it is exp(bound), so that the argument can come back.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: at most 1 ulp inside the bounds (torch's own exp). The naive `exp(x).clamp(max=m)` has a
    NaN gradient where exp overflows (0 times inf); here the bound comes first.
    """
    require_real(x, "exp")
    limit = largest_exp_argument(x.dtype)
    upper = limit if upper is None else min(upper, limit)
    lower = None if lower is None else min(lower, upper)
    if is_within(x, -math.inf if lower is None else lower, upper):
        return torch.exp(x)  # what the bound gives there, in value and gradient
    return torch.exp(clamp(x, lower, upper, outside))


def log(x: Tensor, floor: float | None = None, outside: Outside = "straight_through") -> Tensor:
    """log(max(x, floor)): finite for every finite `x`, zero and negative ones included.

    Args:
        x: any shape.
        floor: smallest argument; by default, and at least, the smallest normal number with a
            finite reciprocal.
        outside: gradient below the floor; straight through, it is 1/floor: strongest exactly for the worst argument.

    Raises:
        UsageError: `x` is complex, integer or not strided, or the floor is negative or not finite.

    *Numerics*: 1 ulp above the floor (torch's log of the unchanged argument; nothing is added to it).
    """
    require_real(x, "log")
    least = _floor(floor, x.dtype, "log")
    return torch.log(x if is_within(x, least, math.inf) else clamp(x, least, None, outside))


def divide(numerator: Tensor | float, denominator: Tensor | float, floor: float | None = None) -> Tensor:
    """numerator / denominator with |denominator| kept at or above `floor`, its sign kept, zero counting as its sign bit says.

    Args:
        numerator, denominator: tensors that broadcast, or one of them a Python number.
        floor: smallest magnitude of the denominator; by default, and at least, the smallest normal number with a finite reciprocal.

    Raises:
        UsageError: neither is a tensor, one is complex or integer, or the floor is negative or not finite.

    *Numerics*: correctly rounded where |denominator| >= floor (torch's own division). Below it the result is constant
    in the denominator, so its gradient to the denominator is 0; to the numerator it is at most 1/floor. Gradients that the
    dtype cannot hold (-a/b**2 overflows in float16 from b = 0.004 down) are its largest number (inf where compiled), and 0 where none comes
    in: torch multiplies by the overflown factor and gives NaN there. The traps: `a / (b + eps)` is off by eps/b everywhere and has a pole at
    b = -eps; a floor times `sign(b)` is 0 at b = 0.
    """
    number_below = isinstance(denominator, (int, float))
    like = require_real(numerator if number_below else denominator, "divide", "numerator" if number_below else "denominator")
    numerator = require_real(numerator, "divide", "numerator") if isinstance(numerator, Tensor) else like.new_tensor(float(numerator))
    denominator = denominator if isinstance(denominator, Tensor) else like.new_tensor(float(denominator))
    least = _floor(floor, denominator.dtype, "divide")
    guarded = torch.where(denominator.abs() < least, torch.copysign(torch.full_like(denominator, least), denominator.detach()), denominator)
    dtype = torch.promote_types(numerator.dtype, guarded.dtype)
    shape = torch.broadcast_shapes(numerator.shape, guarded.shape)
    above, below = numerator.to(dtype).expand(shape), guarded.to(dtype).expand(shape)
    if not torch.compiler.is_compiling():
        result: Tensor = _Quotient.apply(above, below)  # type: ignore[no-untyped-call]
        return result
    # The same derivative by operations that the compiler takes: of a quotient by a number of size one, since -a/b/b overflows on the way.
    wide = below.to(accumulation_dtype(dtype))
    size = wide.detach().abs()
    scale = torch.exp2(-torch.floor(torch.log2(torch.where(size.isfinite(), size, torch.ones_like(size)))))
    carrier = above.to(wide.dtype) / (wide * scale) * scale
    return attach_gradient(above.detach() / below.detach(), carrier.to(dtype))


class _Quotient(torch.autograd.Function):
    """a / b, whose derivatives saturate at the dtype's largest number, and are 0 where no gradient comes in."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a / b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        info = torch.finfo(a.dtype)
        wide = accumulation_dtype(a.dtype)
        over = grads[0].to(wide) / b.to(wide)
        # A product of two quotients, each finite where it can be: -g a / b / b would be 0 * inf for g = 0.
        quotient = (a.to(wide) / b.to(wide)).clamp(torch.finfo(wide).min, torch.finfo(wide).max)
        return over.clamp(info.min, info.max).to(a.dtype), (-over * quotient).clamp(info.min, info.max).to(a.dtype)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        change: Tensor = (tangents[0] - a / b * tangents[1]) / b
        return change


def sqrt(x: Tensor, floor: float | None = None) -> Tensor:
    """sqrt(x) with a finite derivative: below `floor` the line through the origin, 0 at and below 0.

    Args:
        x: any shape; negative numbers (rounding of a variance, say) give 0.
        floor: where the line takes over; by default, and at least, the smallest normal number.

    Raises:
        UsageError: `x` is complex, integer or not strided, or floor is not positive.

    *Numerics*: 1 ulp at and above the floor (torch's own sqrt), exact at 0; continuous; the derivative is at most
    1/sqrt(floor), at 0 included, and 0 below 0.
    """
    require_real(x, "sqrt")
    info = torch.finfo(x.dtype)
    floor = info.smallest_normal if floor is None else floor
    if not (0 < floor <= info.max):
        raise UsageError(f"sqrt: floor must be positive and finite in {x.dtype}; got {floor}")
    floor = max(floor, info.smallest_normal)
    regular = x >= floor
    # The unused branch sees 1, not the floor: its second derivative there would be inf, and 0 * inf is NaN.
    root = torch.sqrt(torch.where(regular, x, torch.ones_like(x)))
    line = x.clamp(min=0) * (1.0 / math.sqrt(floor))
    return torch.where(regular, root, line)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) with an accurate gradient on both sides.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: 2.5 ulp in value and 4 ulp in gradient. torch's value is as good, but its gradient s (1 - s) has lost all
    digits from x = 17 on in float32 (from 8 in float16), where it is exactly 0; here it is that of 1 - sigmoid(-x).
    """
    require_real(x, "sigmoid")
    wide = x.to(accumulation_dtype(x.dtype))
    positive = wide > 0
    smaller = torch.sigmoid(torch.where(positive, -wide, wide))
    return torch.where(positive, 1 - smaller, smaller).to(x.dtype)


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """log(1 + exp(beta x)) / beta, exact to a few ulp over the whole range, linear for large x without a threshold.

    Raises:
        UsageError: `x` is complex, integer or not strided, or beta is not positive.

    *Numerics*: `F.softplus` returns x itself beyond its threshold of 20, which is off by 4e5 ulp in float64;
    this is -logsigmoid(-x), with torch's own stable first and second derivative.
    """
    require_real(x, "softplus")
    if not beta > 0:
        raise UsageError(f"softplus: beta must be positive; got {beta}")
    wide = x.to(accumulation_dtype(x.dtype))
    scaled = wide if beta == 1.0 else wide * beta
    value = -F.logsigmoid(-scaled)
    return (value if beta == 1.0 else value / beta).to(x.dtype)


def logit(p: Tensor, floor: float | None = None, outside: Outside = "straight_through") -> Tensor:
    """log(p / (1 - p)), finite for every p in [0, 1] and beyond.

    Args:
        p: probabilities, any shape.
        floor: distance kept from 0 and from 1; from 1 at least the dtype's spacing there, since 1 - 1e-4 *is* 1 in float16.
        outside: gradient outside [floor, 1 - floor].

    Raises:
        UsageError: `p` is complex, integer or not strided, or floor is not in (0, 0.5).

    *Numerics*: 2 atanh(2p - 1) between 1/4 and 3/4 (2p - 1 is exact there), log p - log1p(-p) elsewhere: a few
    ulp everywhere, where `log(p / (1 - p))` loses all digits near 1/2.
    """
    require_real(p, "logit")
    info = torch.finfo(p.dtype)
    low = _floor(floor, p.dtype, "logit")
    if not low < 0.5:
        raise UsageError(f"logit: floor must be below 0.5; got {low}")
    high = min(1.0 - info.eps / 2, 1.0 - low)
    bounded = clamp(p, low, high, outside).to(accumulation_dtype(p.dtype))
    middle = (bounded > 0.25) & (bounded < 0.75)
    inner = 2 * torch.atanh(torch.where(middle, 2 * bounded - 1, torch.zeros_like(bounded)))
    tail = torch.where(middle, torch.full_like(bounded, 0.5), bounded)
    outer = torch.log(tail) - torch.log1p(-tail)
    return torch.where(middle, inner, outer).to(p.dtype)


def expm1_minus(x: Tensor) -> Tensor:
    """exp(x) - 1 - x, never negative, 0 at 0, with derivative expm1(x); any shape, same dtype.

    This is the term that makes a KL divergence in log-variance form exact.

    *Numerics*: `expm1(x) - x` cancels: at x = 1e-4 in float32 its true value 5e-9 drowns in a rounding error of
    7e-12 and below 1e-7 it may be negative. Below |x| = 1 a Taylor polynomial of degree 18 (float32: 11) is used.
    """
    require_real(x, "expm1_minus")
    wide = x.to(accumulation_dtype(x.dtype))
    if torch.compiler.is_compiling():  # the compiler fuses the polynomial and its derivative
        return _expm1_minus_value(wide).to(x.dtype)
    # Eagerly the polynomial is not differentiated: the derivative is known in closed form.
    result: Tensor = _Expm1Minus.apply(wide, _expm1_minus_value(wide.detach()))  # type: ignore[no-untyped-call]
    return result.to(x.dtype)


def _expm1_minus_value(x: Tensor) -> Tensor:
    near = x.abs() < 1.0
    small = torch.where(near, x, torch.zeros_like(x))
    degree = 18 if x.dtype == torch.float64 else 11
    series = torch.ones_like(small)
    for k in range(degree, 2, -1):  # x^2/2 (1 + x/3 (1 + x/4 (1 + ...)))
        series = 1 + small * (series / k)
    return torch.where(near, small * small * 0.5 * series, torch.expm1(x) - x)


class _Expm1Minus(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * torch.expm1(x), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangents[0] * torch.expm1(x)


def _floor(floor: float | None, dtype: torch.dtype, function: str) -> float:
    """`floor`, lifted to what is a floor in `dtype` at all (1e-6 in float16 is subnormal and its reciprocal is inf)."""
    least = smallest_reciprocal(dtype)
    if floor is None:
        return least
    if not (0 <= floor < torch.finfo(dtype).max):
        raise UsageError(f"{function}: floor must be at least 0 and finite in {dtype}; got {floor}")
    return max(floor, least)
