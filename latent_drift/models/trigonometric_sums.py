"""Sums of cos(j theta) and sin(j theta) over a sample, and the trigonometric series they are the adjoint of.

The two operations are each other's derivative, so they close under differentiation and gradients of any
order cost no more than these two kernels:

    sums    C_j = sum_n w_n cos(j theta_n),  S_j = sum_n w_n sin(j theta_n),        j = 1..J
    series  y_n = sum_j a_j cos(j theta_n) + b_j sin(j theta_n)

Both evaluate two transcendental functions a sample. With m = ceil(J/2), the multiples 2..m come from angle
addition along a tree of depth log2(m), and those above m are never formed: cos((m+j)t) = cos(mt) cos(jt) -
sin(mt) sin(jt) turns their sums into inner products with cos(mt) and sin(mt), one small matrix product. Work
goes in blocks that stay in cache, so no tensor of size samples x J exists.

*Numerics*: angle addition composes rotations, whose errors add up: at most about J ulp at multiple J. The Chebyshev
recurrence c_{j+1} = 2 c_1 c_j - c_{j-1} is cheaper, but amplifies rounding by up to J^2 near theta = 0, which is where
standardised data is.
Entries of `x` that are not finite are absent: they add nothing to a sum, are not counted, and get gradient 0.

Both are torch custom operators, opaque to `torch.compile` (`fullgraph=True` holds).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

# Elements of theta in a block. On a CPU the 2m arrays of a block should stay in a second-level cache of about
# 1 to 2 MiB (16 x 2**15 x 4 B = 2 MiB measured best of 2**13..2**18); elsewhere launches dominate.
_BLOCK_CPU: Final = 2**15
_BLOCK_DEVICE: Final = 2**22


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    rows, samples = x.shape
    size = _BLOCK_CPU if x.device.type == "cpu" else _BLOCK_DEVICE
    width = max(1, min(samples, size))
    height = max(1, min(rows, size // width))
    for row in range(0, rows, height):
        for start in range(0, samples, width):
            yield slice(row, row + height), slice(start, start + width)


def _finite(theta: Tensor) -> Tensor | None:
    """The mask of finite entries, or None where all are; non-finite entries of `theta` become 0 in place."""
    if theta.device.type == "cpu" and bool(theta.sum().isfinite()):
        return None  # one read; a sum that overflows only sends us down the general path
    mask = theta.isfinite()
    theta.masked_fill_(~mask, 0.0)
    return mask


def _multiples(theta: Tensor, half: int) -> Tensor:
    """cos and sin of 1..half times theta: (rows, 2 * half, samples), cosines first."""
    rows, samples = theta.shape
    table = theta.new_empty((rows, 2 * half, samples))
    cos, sin = table[:, :half], table[:, half:]
    torch.cos(theta, out=cos[:, 0])
    torch.sin(theta, out=sin[:, 0])
    for j in range(2, half + 1):
        a = (j + 1) // 2
        b = j - a
        cos_a, sin_a, cos_b, sin_b = cos[:, a - 1], sin[:, a - 1], cos[:, b - 1], sin[:, b - 1]
        torch.mul(cos_a, cos_b, out=cos[:, j - 1]).addcmul_(sin_a, sin_b, value=-1.0)
        torch.mul(sin_a, cos_b, out=sin[:, j - 1]).addcmul_(cos_a, sin_b)
    return table


@torch.library.custom_op("latent_drift::trigonometric_sums", mutates_args=())
def trigonometric_sums(x: Tensor, step: Tensor, count: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums of cos(j step x) and sin(j step x), j = 1..count, along the last axis.

    Args:
        x: (rows, samples), float32 or float64.
        step: 0-d, the angle of one unit of `x`; a constant, it gets no gradient.
        count: J, at least 1.
        weight: (rows, samples) or None for 1.

    Returns:
        cosines (rows, J), sines (rows, J) and the number of finite entries (rows,), all in the dtype of `x`.
    """
    rows, samples = x.shape
    half = (count + 1) // 2
    cosines, sines = x.new_zeros((rows, count)), x.new_zeros((rows, count))
    present = x.new_full((rows,), float(samples))
    for row, col in _blocks(x):
        theta = x[row, col] * step.to(x.dtype)
        mask = _finite(theta)
        table = _multiples(theta, half)
        factors = x.new_empty((theta.shape[0], 3, theta.shape[1]))
        factors[:, 0] = 1.0 if weight is None else weight[row, col]
        if mask is not None:
            factors[:, 0].masked_fill_(~mask, 0.0)
            present[row] -= (~mask).sum(-1)
        if weight is None and mask is None:
            factors[:, 1:] = table[:, half - 1 :: half]
        else:
            torch.mul(table[:, half - 1 :: half], factors[:, :1], out=factors[:, 1:])
        plain, by_cos, by_sin = torch.bmm(table, factors.mT).unbind(-1)
        cosines[row, :half] += plain[:, :half]
        sines[row, :half] += plain[:, half:]
        rest = count - half
        cosines[row, half:] += by_cos[:, :rest] - by_sin[:, half : half + rest]
        sines[row, half:] += by_sin[:, :rest] + by_cos[:, half : half + rest]
    return cosines, sines, present


@trigonometric_sums.register_fake
def _(x: Tensor, step: Tensor, count: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    return x.new_empty((rows, count)), x.new_empty((rows, count)), x.new_empty((rows,))


@torch.library.custom_op("latent_drift::trigonometric_series", mutates_args=())
def trigonometric_series(x: Tensor, step: Tensor, cos_coefficients: Tensor, sin_coefficients: Tensor) -> Tensor:
    """sum_j a_j cos(j step x) + b_j sin(j step x), with coefficients of its own for every row.

    Args:
        x: (rows, samples), float32 or float64.
        step: 0-d, as in `trigonometric_sums`.
        cos_coefficients, sin_coefficients: (rows, J), for j = 1..J.

    Returns:
        (rows, samples), 0 where `x` is not finite.
    """
    count = cos_coefficients.shape[1]
    half = (count + 1) // 2
    rest = count - half
    # y = p0 + cos(m theta) p1 + sin(m theta) p2 with each p a series in the first m multiples.
    factors = x.new_zeros((x.shape[0], 3, 2 * half))
    factors[:, 0, :half], factors[:, 0, half:] = cos_coefficients[:, :half], sin_coefficients[:, :half]
    factors[:, 1, :rest], factors[:, 1, half : half + rest] = cos_coefficients[:, half:], sin_coefficients[:, half:]
    factors[:, 2, :rest], factors[:, 2, half : half + rest] = sin_coefficients[:, half:], -cos_coefficients[:, half:]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for row, col in _blocks(x):
        theta = x[row, col] * step.to(x.dtype)
        mask = _finite(theta)
        table = _multiples(theta, half)
        plain, by_cos, by_sin = torch.bmm(factors[row], table).unbind(1)
        value = plain.addcmul_(table[:, half - 1], by_cos).addcmul_(table[:, 2 * half - 1], by_sin)
        y[row, col] = value if mask is None else value.masked_fill_(~mask, 0.0)
    return y


@trigonometric_series.register_fake
def _(x: Tensor, step: Tensor, cos_coefficients: Tensor, sin_coefficients: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _order(coefficients: Tensor) -> Tensor:
    return torch.arange(1, coefficients.shape[-1] + 1, dtype=coefficients.dtype, device=coefficients.device)


def _derivative(x: Tensor, step: Tensor, cos_coefficients: Tensor, sin_coefficients: Tensor) -> Tensor:
    """d/dx of the series: the series with coefficients (j b_j, -j a_j), times step."""
    order = _order(cos_coefficients) * step.to(x.dtype)
    derivative: Tensor = trigonometric_series(x, step, order * sin_coefficients, -order * cos_coefficients)
    return derivative


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, step, _, weight = inputs
    ctx.save_for_backward(x, step, weight)


def _sums_backward(ctx: Any, grad_cos: Tensor, grad_sin: Tensor, _grad_present: Tensor | None) -> tuple[Tensor | None, None, None, Tensor | None]:
    x, step, weight = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = _derivative(x, step, grad_cos, grad_sin)
        grad_x = grad_x if weight is None else grad_x * weight
    if weight is not None and ctx.needs_input_grad[3]:
        grad_weight = trigonometric_series(x, step, grad_cos, grad_sin)
    return grad_x, None, None, grad_weight


def _series_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _series_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor]:
    x, step, cos_coefficients, sin_coefficients = ctx.saved_tensors
    grad_x = grad * _derivative(x, step, cos_coefficients, sin_coefficients) if ctx.needs_input_grad[0] else None
    grad_cos, grad_sin, _ = trigonometric_sums(x, step, cos_coefficients.shape[1], grad.contiguous())
    return grad_x, None, grad_cos, grad_sin


trigonometric_sums.register_autograd(_sums_backward, setup_context=_sums_setup)
trigonometric_series.register_autograd(_series_backward, setup_context=_series_setup)
