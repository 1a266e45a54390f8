"""A bound for the inner loop of the models: the identity inside, and a slope that never dies outside."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PLAIN: Final = (Tensor, nn.Parameter)  # a subclass may have no numbers to look at


def soft_bound(x: Tensor, lower: float = -2.0, upper: float = 2.0) -> Tensor:
    """`x` within [lower, upper], upper + atan(x - upper) above and likewise below: at most pi / 2 outside; same shape and dtype.

    *Numerics*: exact inside; value and slope are continuous at the edges; the slope at a distance u outside is 1 / (1 + u**2), 1e-4 at a
    hundred, so that a descent step brings the value back (`clamp`: 0; `tanh`: 1e-87). +-inf give the bound, NaN stays NaN.
    What `numerics.bounds.soft_clamp` does with a hyperbola, in a third of the kernel calls: these tensors are so small that the
    calls are the cost.
    """
    if _is_within(x, lower, upper):
        return x  # what the formula gives there, in value and gradient, for a tenth of its kernel calls
    core = F.hardtanh(x, lower, upper)  # clamp, with one kernel in the backward pass where that has four
    return core + torch.atan(x - core)


def _is_within(x: Tensor, lower: float, upper: float) -> bool:
    """Whether all entries are known to lie in [lower, upper]; looks only where a look costs two microseconds and no graph is being made."""
    readable = type(x) in _PLAIN and x.is_cpu and not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    if not readable or x.numel() == 0:
        return False
    lowest, highest = torch.aminmax(x.detach())
    return lowest.item() >= lower and highest.item() <= upper
