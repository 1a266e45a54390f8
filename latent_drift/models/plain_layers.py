"""Whether networks may be evaluated as one function with its own backward pass, instead of module by module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

_TENSORS: Final = (Tensor, nn.Parameter)  # a subclass (sharded, fake, quantized) has rules of its own


def is_unobserved(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of `kind` and calling it does nothing beside its `forward`: no hooks, no forward of its own."""
    state = module.__dict__
    return type(module) is kind and not (
        state["_forward_hooks"] or state["_forward_pre_hooks"] or state["_backward_hooks"] or state["_backward_pre_hooks"] or "forward" in state
    )


def linear_parameters(net: nn.Module) -> list[Tensor] | None:
    """Weight and bias of each layer of an unobserved Sequential of Linear, SiLU, Linear, ..., Linear; None for anything else."""
    if not is_unobserved(net, nn.Sequential):
        return None
    found: list[Tensor] = []
    expected: type[nn.Module] = nn.Linear
    for layer in net.__dict__["_modules"].values():
        if not is_unobserved(layer, expected):
            return None
        if expected is nn.Linear:
            parameters = layer.__dict__["_parameters"]
            if parameters.get("weight") is None or parameters.get("bias") is None:
                return None
            found += (parameters["weight"], parameters["bias"])
        expected = nn.SiLU if expected is nn.Linear else nn.Linear
    return found if expected is nn.SiLU else None


def can_fuse(x: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether `x` and `parameters` are ordinary CPU tensors of one dtype, and nobody follows single operations.

    Followers are `torch.compile`, tracing, torch.func and forward-mode differentiation, autocast, and hooks on all modules. On a CPU kernel calls,
    not arithmetic, are the cost of small networks; elsewhere the looks that fused forms take at their values would wait for the device.
    """
    dtype = x.dtype
    if torch.compiler.is_compiling() or not x.is_cpu or type(x) not in _TENSORS or x.numel() == 0 or torch.is_autocast_enabled("cpu"):
        return False
    followed = (
        forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or _has_any_global_hook()  # type: ignore[no-untyped-call]
    )
    return not followed and all(type(p) in _TENSORS and p.dtype is dtype and p.is_cpu for p in parameters)
