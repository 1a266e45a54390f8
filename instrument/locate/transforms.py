"""Inside `torch.func` transforms tensors are wrapped, a layer for each `grad` or `vmap`: what is looked at is the tensor at the bottom."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_unwrapped = torch._C._functorch.get_unwrapped


def bare(x: Tensor) -> Tensor:
    """The tensor below all layers of transforms; `x` itself outside of any. All examples of a `vmap` are in it."""
    while _is_wrapped(x):
        x = _unwrapped(x)
    return x


def nodes(x: Tensor) -> list[Any]:
    """The nodes that differentiate `x`, one for each layer that does."""
    found = [] if x.grad_fn is None else [x.grad_fn]
    while _is_wrapped(x):
        x = _unwrapped(x)
        if x.grad_fn is not None:
            found.append(x.grad_fn)
    return found


def is_transformed(x: Tensor) -> bool:
    """Whether a transform has wrapped this tensor."""
    return bool(_is_wrapped(x))
