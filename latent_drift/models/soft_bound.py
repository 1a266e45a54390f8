"""A bound for the inner loop of the models: the identity inside, and a slope that never dies outside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_drift.numerics.bounds import is_within


def soft_bound(x: Tensor, lower: float = -2.0, upper: float = 2.0) -> Tensor:
    """`x` within [lower, upper], upper + atan(x - upper) above and likewise below: at most pi / 2 outside; same shape and dtype.

    *Numerics*: exact inside; value and slope are continuous at the edges; the slope at a distance u outside is 1 / (1 + u**2), 1e-4 at a
    hundred, so that a descent step brings the value back (`clamp`: 0; `tanh`: 1e-87). +-inf give the bound, NaN stays NaN.
    What `numerics.bounds.soft_clamp` does with a hyperbola, in a third of the kernel calls: these tensors are so small that the
    calls are the cost.
    """
    if is_within(x, lower, upper):
        return x  # what the formula gives there, in value and gradient, for a tenth of its kernel calls
    core = F.hardtanh(x, lower, upper)  # clamp, with one kernel in the backward pass where that has four
    return core + torch.atan(x - core)
