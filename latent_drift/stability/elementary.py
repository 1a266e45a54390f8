"""exp, log, division, sqrt and their kin, with the active config's bounds.

Thin faces of `latent_drift.numerics.elementary`: dtype and shape are kept, NaN is let through, all
differentiate twice, work under vmap and compile with `fullgraph=True`.
"""

from __future__ import annotations

from torch import Tensor

from latent_drift.numerics import elementary
from latent_drift.numerics.dtypes import require_real
from latent_drift.stability.settings import settings_for


def stable_exp(x: Tensor, min_val: float | None = None, max_val: float | None = None) -> Tensor:
    """exp(x) that never overflows, with a gradient that lets `x` come back.

    Args:
        x: real floating tensor, any shape.
        min_val: lower bound on the argument; the config's by default (none, unless it is tightened).
        max_val: upper bound on the argument; the config's by default, and never above what the dtype can hold.

    Returns:
        Same shape and dtype, finite for every `x` that is not NaN.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: at most 1 ulp inside the bounds; beyond them the gradient is the config's `exp.gradient_outside`
    (exp(bound), or 0). The bound comes before the exponential: clamping after it gives NaN gradients where it overflowed.

    *Source*: `tests/numerics/test_elementary.py` measures it in every dtype.

    >>> import torch
    >>> x = torch.tensor([0.0, 12.0, 1000.0], dtype=torch.float16)
    >>> torch.exp(x), stable_exp(x)
    (tensor([1., inf, inf], dtype=torch.float16), tensor([1.0000e+00, 6.5248e+04, 6.5248e+04], dtype=torch.float16))
    """
    config = settings_for(x, "stable_exp")
    upper = config.exp_max if max_val is None else min(max_val, config.exp_max)
    lower = config.exp_min if min_val is None else min_val
    return elementary.exp(x, lower, upper, config.outside)


def stable_log(x: Tensor, eps: float | None = None) -> Tensor:
    """log(max(x, eps)), finite for every finite `x`, its gradient 1/eps below eps.

    Args:
        x: real floating tensor, any shape.
        eps: smallest argument; the config's `log_floor` for the dtype by default; lifted to the smallest normal number.

    Raises:
        UsageError: `x` is complex, integer or not strided, or eps is negative or not finite.

    *Numerics*: at most 1 ulp above eps: nothing is added to the argument. A clamp's gradient is 0 exactly for the worst arguments.

    >>> import torch
    >>> stable_log(torch.tensor([0.0, 1.0]), eps=1e-7)
    tensor([-16.1181,   0.0000])
    """
    config = settings_for(x, "stable_log")
    return elementary.log(x, config.log_floor if eps is None else eps)


def stable_divide(numerator: Tensor | float, denominator: Tensor | float, eps: float | None = None) -> Tensor:
    """numerator / denominator with |denominator| at least `eps`, keeping its sign; a zero counts as its sign bit says.

    Args:
        numerator, denominator: tensors that broadcast, or one of them a number.
        eps: smallest magnitude; the config's `division_eps` for the dtype by default.

    Raises:
        UsageError: neither is a tensor, one is complex or integer, or eps is negative or not finite.

    *Numerics*: torch's own division where |denominator| >= eps. Below, the gradient to the denominator is 0; above, it is the dtype's
    largest number where it would overflow (-a/b**2 does so in float16 from b = 0.004 down), and never 0 * inf.

    >>> import torch
    >>> stable_divide(torch.tensor([1.0, 1.0, 6.0]), torch.tensor([0.0, -0.0, 3.0]), eps=0.5)
    tensor([ 2., -2.,  2.])
    """
    for name, value in (("numerator", numerator), ("denominator", denominator)):
        if not isinstance(value, (int, float)) or (name == "denominator" and isinstance(numerator, (int, float))):
            require_real(value, "stable_divide", name)
    config = settings_for(numerator if isinstance(denominator, (int, float)) else denominator, "stable_divide")
    return elementary.divide(numerator, denominator, config.division_eps if eps is None else eps)


def stable_sqrt(x: Tensor, eps: float | None = None) -> Tensor:
    """sqrt(x), 0 at and below 0, with a derivative of at most 1/sqrt(eps).

    Args:
        x: real floating tensor, any shape.
        eps: below it, the line through the origin; the smallest normal number by default.

    Raises:
        UsageError: `x` is complex, integer or not strided, or eps is not positive.

    *Numerics*: at most 1 ulp at and above eps, exact at 0.

    >>> import torch
    >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
    >>> stable_sqrt(x, eps=0.25).sum().backward()
    >>> x.grad
    tensor([2.0000, 0.2500])
    """
    require_real(x, "stable_sqrt")
    return elementary.sqrt(x, eps)


def stable_sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) with a gradient that keeps its digits for large x, where torch's is 0.

    Raises:
        UsageError: `x` is complex, integer or not strided.

    *Numerics*: at most 2.5 ulp in value, 4 ulp in gradient.

    >>> import torch
    >>> x = torch.tensor([-200.0, 0.0, 200.0])
    >>> stable_sigmoid(x)
    tensor([0.0000, 0.5000, 1.0000])
    """
    return elementary.sigmoid(require_real(x, "stable_sigmoid"))


def stable_softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """log(1 + exp(beta x)) / beta over the whole range, without a threshold.

    Raises:
        UsageError: `x` is complex, integer or not strided, or beta is not positive.

    *Numerics*: at most 2.5 ulp; torch's own drops a term of 2e-9 beyond its threshold of 20.

    >>> import torch
    >>> stable_softplus(torch.tensor([-1000.0, 0.0, 1000.0]))
    tensor([0.0000e+00, 6.9315e-01, 1.0000e+03])
    """
    return elementary.softplus(require_real(x, "stable_softplus"), beta) + 0.0  # -0.0 becomes 0.0


def stable_logit(p: Tensor, eps: float | None = None) -> Tensor:
    """log(p / (1 - p)), finite on the whole of [0, 1].

    Args:
        p: probabilities, any shape.
        eps: distance kept from 0 and 1; the config's `log_floor` by default, and from 1 at least the dtype's spacing there.

    Raises:
        UsageError: `p` is complex, integer or not strided, or eps is negative or not below 0.5.

    *Numerics*: at most 2.5 ulp, also near 1/2. In float16, 1 - 1e-4 is 1: the bound there is the number below 1.

    >>> import torch
    >>> stable_logit(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float16))
    tensor([-9.7031,  0.0000,  7.6250], dtype=torch.float16)
    """
    config = settings_for(p, "stable_logit")
    return elementary.logit(p, config.log_floor if eps is None else eps)
