"""A symmetric bound for the inner loop of the models: the identity inside, and a slope that never dies outside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_bound(x: Tensor, knee: float = 2.0) -> Tensor:
    """`x` where |x| <= knee, +-(knee + atan(|x| - knee)) beyond: never more than knee + pi / 2; same shape and dtype.

    *Numerics*: exact inside; value and slope are continuous at the knee; the slope at |x| = knee + u is 1 / (1 + u**2), 1e-4 a hundred
    outside, so that a descent step brings the value back (`clamp`: 0; `tanh`: 1e-87). +-inf give the bound, NaN stays NaN.
    What `numerics.bounds.soft_clamp` does with a hyperbola for any interval, in a third of the kernel calls: these
    tensors are so small that the calls are the cost.
    """
    core = F.hardtanh(x, -knee, knee)  # clamp, with one kernel in the backward pass where that has four
    return core + torch.atan(x - core)
