"""Errors of reductions, norms and losses in ulp, values and gradients, against mpmath, over the range of each dtype.

Elementwise functions have their own table in `tests/numerics/test_elementary.py`. Here each function makes one number of a row; its error is in ulp
of that number (or of the row's largest magnitude, where the result is a difference of such), its gradient's in ulp of the gradient's largest
component: components that cancel to nothing have no digits of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mpmath
import torch
from torch import Tensor

import latent_drift.stability as stability
from tests.numerics.ulp import spacing

Mp = mpmath.mpf
Row = Sequence[mpmath.mpf]
_LENGTH, _ROWS = 9, 6


class Measured(NamedTuple):
    """A function of a row, the same in exact arithmetic, the scales of its rows, and the errors allowed.

    Attributes:
        ours: row -> number, in the row's dtype.
        exact: the same of mpmath numbers.
        scales: dtype -> factors of the rows (standard normal numbers).
        max_ulp: of the value.
        max_gradient_ulp: of the gradient.
        of_inputs: the value's error is in ulp of the larger of it and the row's largest magnitude.
        of_one: the gradient's is in ulp of 1, the gradient that comes in: 1 - p has no more digits.
        unit: rows lie in (0, 1) instead: probabilities.
    """

    ours: Callable[[Tensor], Tensor]
    exact: Callable[[Row], mpmath.mpf]
    scales: Callable[[torch.dtype], Sequence[float]]
    max_ulp: float
    max_gradient_ulp: float
    of_inputs: bool = False
    of_one: bool = False
    unit: bool = False


def _ordinary(dtype: torch.dtype) -> Sequence[float]:
    return (0.01, 1.0, 4.0)


def _logits(dtype: torch.dtype) -> Sequence[float]:
    return (0.01, 1.0, 10.0, torch.finfo(dtype).max / 8)


def _whole(dtype: torch.dtype) -> Sequence[float]:
    """Powers of two from near the smallest normal number to near the largest."""
    info = torch.finfo(dtype)
    low, high = math.log2(info.tiny) + 6, math.log2(info.max) - 6
    return [2.0 ** round(low + (high - low) * k / 6) for k in range(7)]


def _log_variances(dtype: torch.dtype) -> Sequence[float]:
    return (0.001, 1.0, 3.0) if dtype == torch.float16 else (0.001, 1.0, 25.0)


def _sum(x: Row) -> mpmath.mpf:
    return mpmath.fsum(x)


def _lse(x: Row) -> mpmath.mpf:
    largest = max(x)
    return largest + mpmath.log(_sum([mpmath.exp(v - largest) for v in x]))


def _variance(x: Row) -> mpmath.mpf:
    mean = _sum(x) / len(x)
    return _sum([(v - mean) ** 2 for v in x]) / len(x)


def _length(x: Row) -> mpmath.mpf:
    return mpmath.sqrt(_sum([v * v for v in x]))


def _kl(mean: mpmath.mpf, logvar: mpmath.mpf) -> mpmath.mpf:
    return (mpmath.expm1(logvar) - logvar + mean * mean) / 2


def _nll(difference: float, logvar: mpmath.mpf) -> mpmath.mpf:
    return (logvar + difference * difference * mpmath.exp(-logvar)) / 2


def _eps(x: Row, eps: float) -> mpmath.mpf:
    return mpmath.sqrt(_variance(x) + mpmath.mpf(eps))


_ONE = torch.tensor([0])

MEASURED: dict[str, Measured] = {
    "stable_softmax": Measured(lambda x: stability.stable_softmax(x)[0], lambda x: mpmath.exp(x[0] - _lse(x)), _ordinary, 12, 8),
    "stable_log_softmax": Measured(
        lambda x: stability.stable_log_softmax(x)[0], lambda x: x[0] - _lse(x), _logits, 2, 2, of_inputs=True, of_one=True
    ),
    "log_sum_exp": Measured(stability.log_sum_exp, _lse, _logits, 2, 8, of_inputs=True),
    "stable_norm": Measured(stability.stable_norm, _length, _whole, 4, 6),
    "stable_normalize": Measured(
        lambda x: stability.stable_normalize(x, eps=torch.finfo(x.dtype).tiny)[0], lambda x: x[0] / _length(x), _whole, 6, 8
    ),
    "kahan_sum": Measured(stability.kahan_sum, _sum, _whole, 1, 0.5),
    "pairwise_sum": Measured(stability.pairwise_sum, _sum, _whole, 3, 0.5, of_inputs=True),
    "welford, mean": Measured(lambda x: stability.welford(x).mean, lambda x: _sum(x) / len(x), _whole, 2, 1, of_inputs=True),
    "welford, variance": Measured(lambda x: stability.welford(x, correction=0).variance, _variance, _ordinary, 6, 8),
    "StableLayerNorm": Measured(
        lambda x: stability.StableLayerNorm(_LENGTH, elementwise_affine=False)(x)[0],
        lambda x: (x[0] - _sum(x) / len(x)) / _eps(x, 1e-5),
        _ordinary,
        12,
        12,
        of_inputs=True,
    ),
    "RMSNorm": Measured(
        lambda x: stability.RMSNorm(_LENGTH, eps=1e-6, elementwise_affine=False)(x)[0],
        lambda x: x[0] / mpmath.sqrt(_sum([v * v for v in x]) / len(x) + mpmath.mpf(1e-6)),
        _ordinary,
        6,
        12,
    ),
    "stable_cross_entropy": Measured(
        lambda x: stability.stable_cross_entropy(x[None], _ONE), lambda x: _lse(x) - x[0], _logits, 3, 2, of_inputs=True, of_one=True
    ),
    "stable_binary_cross_entropy": Measured(
        lambda x: stability.stable_binary_cross_entropy(x, torch.full_like(x, 0.25), eps=0.0),
        lambda x: -_sum([mpmath.log(v) / 4 + 3 * mpmath.log1p(-v) / 4 for v in x]) / len(x),
        _ordinary,
        4,
        6,
        unit=True,
    ),
    "stable_kl_divergence, logvar": Measured(
        lambda x: stability.stable_kl_divergence(torch.full_like(x, 0.5), x),
        lambda x: _sum([_kl(mpmath.mpf(0.5), v) for v in x]),
        _log_variances,
        4,
        4,
    ),
    "stable_kl_divergence, mean": Measured(
        lambda x: stability.stable_kl_divergence(x, torch.zeros_like(x)), lambda x: _sum([v * v / 2 for v in x]), _ordinary, 4, 2
    ),
    "gaussian_nll": Measured(
        lambda x: stability.gaussian_nll(torch.zeros_like(x), torch.full_like(x, 0.5), x),
        lambda x: _sum([_nll(0.5, v) for v in x]) / len(x),
        _log_variances,
        4,
        6,
        of_inputs=True,
    ),
}
"""label -> what is measured; a label begins with the public name."""


def _rows(measured: Measured, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for scale in measured.scales(dtype):
        for index in range(_ROWS):
            if measured.unit:  # from near 1 down to small probabilities
                row = torch.rand(_LENGTH, generator=generator, dtype=torch.float64) * 0.98 ** (40 * index) + 2e-3
                row = row / (row.max() * 1.02)
            else:
                row = torch.randn(_LENGTH, generator=generator, dtype=torch.float64).clamp(-4, 4) * scale
            rows.append(row.to(dtype))
    return rows


def errors(label: str, dtype: torch.dtype, digits: int = 80) -> tuple[float, float]:
    """Largest errors of value and gradient over the rows, in ulp as said above."""
    measured = MEASURED[label]
    worst = [0.0, 0.0]
    for row in _rows(measured, dtype):
        x = row.clone().requires_grad_()
        value = measured.ours(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        with mpmath.workdps(digits):
            numbers = [mpmath.mpf(v) for v in row.double().tolist()]
            exact = measured.exact(numbers)
            size = max(abs(v) for v in numbers)
            step = size * mpmath.mpf(10) ** (-digits // 3)
            slopes = []
            for index in range(len(numbers)):  # a central difference in many digits: its error is far below any dtype's
                up, down = list(numbers), list(numbers)
                up[index], down[index] = numbers[index] + step, numbers[index] - step
                slopes.append((measured.exact(up) - measured.exact(down)) / (2 * step))
            scale = max(abs(exact), size) if measured.of_inputs else abs(exact)
            off = float(
                abs(mpmath.mpf(value.double().item()) - exact) / mpmath.mpf(spacing(torch.tensor(float(scale), dtype=torch.float64), dtype).item())
            )
            largest = max(1.0 if measured.of_one else 0.0, float(max(abs(s) for s in slopes)))
            unit = mpmath.mpf(spacing(torch.tensor(largest, dtype=torch.float64), dtype).item())
            off_gradient = max(float(abs(mpmath.mpf(g) - s) / unit) for g, s in zip(gradient.double().tolist(), slopes, strict=True))
        worst = [max(worst[0], off), max(worst[1], off_gradient)]
    return worst[0], worst[1]
