"""Densities and divergences of diagonal Gaussians in log-variance form: no variance is ever divided by.

The traps: `exp(logvar_q) / (exp(logvar_p) + 1e-8)` biases the divergence (-0.198 for q = p at log-variance -18);
exp then clamp gives NaN gradients. Here only differences of log-variances are exponentiated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latent_drift.numerics.bounds import attach_gradient, clamp
from latent_drift.numerics.dtypes import accumulation_dtype, require_real
from latent_drift.numerics.elementary import expm1_minus
from latent_drift.numerics.limits import largest_exp_argument, largest_square_root

_LOG_2PI = math.log(2.0 * math.pi)
# Terms of float32 and wider stay this far below the dtype's largest number, so that 256 saturated ones still have a
# finite sum. float16 has no such room: there each term and each gradient fits by itself, and sums belong in float32.
_HEADROOM = 256.0


def kl_divergence(
    mean_q: Tensor,
    logvar_q: Tensor,
    mean_p: Tensor | float = 0.0,
    logvar_p: Tensor | float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """KL(q || p) in nats, elementwise, for q = N(mean_q, exp(logvar_q)) and p = N(mean_p, exp(logvar_p)).

    Args:
        mean_q, logvar_q: tensors that broadcast.
        mean_p, logvar_p: tensors or numbers.
        dtype: of the result; that of `mean_q` by default. Pass torch.float32 to go on summing half-precision terms.

    Returns:
        The broadcast shape; sum over the latent axis for the divergence of the vectors.

    Raises:
        UsageError: complex, integer or not strided.

    *Numerics*: (expm1(d) - d + (mean_q - mean_p)**2 exp(-logvar_p)) / 2 with d = logvar_q - logvar_p: exactly 0 for
    equal distributions, never negative, a few ulp also for d near 0, where the usual form cancels. Where the input's dtype
    could not hold the result or its gradient, both saturate, the gradient passing straight through: finite in value and
    gradient for log-variances in +-80 in every dtype.

    *Source*: audit.md, E2, X3, X4; Kingma and Welling 2014, appendix B, with a general prior.
    """
    require_real(mean_q, "kl_divergence", "mean_q")
    require_real(logvar_q, "kl_divergence", "logvar_q")
    mean_q, logvar_q, mean_p, logvar_p, own = _widened(mean_q, logvar_q, mean_p, logvar_p)
    variance_term = expm1_minus(clamp(logvar_q - logvar_p, None, _exponent_bound(own)))
    distance = _scaled_distance(mean_q - mean_p, logvar_p, own)
    return saturating_cast(0.5 * (variance_term + distance * distance), dtype or own)


def log_prob(x: Tensor, mean: Tensor | float, logvar: Tensor | float, dtype: torch.dtype | None = None) -> Tensor:
    """log N(x; mean, exp(logvar)) in nats, elementwise, in the broadcast shape; bounds and `dtype` as in `kl_divergence`.

    Raises:
        UsageError: complex, integer or not strided.
    """
    require_real(x, "log_prob")
    x, mean, logvar, _, own = _widened(x, mean, logvar, 0.0)
    distance = _scaled_distance(x - mean, logvar, own)
    return saturating_cast(-0.5 * (logvar + _LOG_2PI + distance * distance), dtype or own)


def negative_log_likelihood(mean: Tensor, target: Tensor, logvar: Tensor, full: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """-log N(target; mean, exp(logvar)) in nats, elementwise; without the constant log(2 pi)/2 unless `full`.

    Raises:
        UsageError: complex, integer or not strided.

    *Numerics*: the log-variance form of `F.gaussian_nll_loss`, whose variance floor of 1e-6 has no gradient below it.
    Bounds and `dtype` as in `kl_divergence`.
    """
    require_real(mean, "gaussian_nll", "mean")
    require_real(logvar, "gaussian_nll", "logvar")
    mean, target, logvar, _, own = _widened(mean, target, logvar, 0.0)
    distance = _scaled_distance(target - mean, logvar, own)
    return saturating_cast(0.5 * (logvar + (_LOG_2PI if full else 0.0) + distance * distance), dtype or own)


def saturating_cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in `dtype`; numbers beyond its range, inf included, become its largest, with the gradient straight through; NaN stays."""
    info = torch.finfo(dtype)
    return clamp(value, info.min, info.max).to(dtype) if torch.finfo(value.dtype).max >= info.max else value.to(dtype)


def _widened(a: Tensor, b: Tensor | float, c: Tensor | float, d: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.dtype]:
    """The four operands in the accumulation dtype of the narrowest result, and that result's dtype."""
    own = a.dtype
    for other in (b, c, d):
        if isinstance(other, Tensor):
            own = torch.promote_types(own, require_real(other, "gaussian", "argument").dtype)
    wide = accumulation_dtype(own)

    def widen(value: Tensor | float) -> Tensor:
        return value.to(wide) if isinstance(value, Tensor) else torch.as_tensor(value, dtype=wide, device=a.device)

    return widen(a), widen(b), widen(c), widen(d), own


def _exponent_bound(dtype: torch.dtype) -> float:
    return largest_exp_argument(dtype) - (0.0 if dtype == torch.float16 else math.log(_HEADROOM))


def _scaled_distance(difference: Tensor, logvar: Tensor, dtype: torch.dtype) -> Tensor:
    """difference / sigma, bounded so that its square and its gradients fit into `dtype`."""
    bound = largest_square_root(dtype) / (1.0 if dtype == torch.float16 else math.sqrt(_HEADROOM))
    precision = torch.exp(0.5 * clamp(-logvar, None, _exponent_bound(dtype)))
    # The difference is bounded, not the product: the gradient to logvar, product**2 / 2, is then bounded with it.
    limit = bound / precision.detach()
    bounded = attach_gradient(torch.minimum(torch.maximum(difference.detach(), -limit), limit), difference)
    return bounded * precision
