"""Layer-sequential unit-variance initialisation, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from latent_drift.errors import UsageError
from latent_drift.numerics.snapshot import RandomSnapshot, copied
from latent_drift.stability.calling import call_model


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside: no gradients, dropout off, batch norm normalising by the batch. Afterwards: modes, buffers and random states are as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, copied(buffer)) for buffer in model.buffers()]
    random = RandomSnapshot()
    try:
        for module in model.modules():
            module.training = isinstance(module, _BatchNorm)
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, mode in modes:
            module.training = mode
        random.restore()


def lsuv_init(model: nn.Module, data_batch: Any, target_var: float = 1.0, orthogonal: bool = True) -> dict[str, float]:
    """Give the output of every linear and convolutional layer the variance `target_var` on a batch, layer after layer, in place.

    Args:
        model: any module; layers are visited in the order in which the forward pass reaches them.
        data_batch: a tensor, a tuple of arguments, or a mapping of keywords.
        target_var: variance of each layer's output (before its nonlinearity).
        orthogonal: whether weights become orthogonal first; else they keep their direction and are only scaled.

    Returns:
        name -> measured variance of the output afterwards, in the order of execution. Layers whose weights are zero by design keep them, and
        layers that share a weight (or are called again) are scaled once, by the first: they appear with what came out.

    Raises:
        UsageError: target_var is not positive, no layer was reached, or the batch makes a layer's output non-finite (named).

    *Numerics*: a layer's output is linear in its weight, so one forward pass suffices: each layer is scaled when it is
    reached and hands on its scaled output. Variances are formed in float32 at least. Train/eval modes, buffers and random states are as before.

    *Source*: Mishkin and Matas, All you need is a good init, 2016.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(64, 64), nn.ReLU())])
    >>> variances = lsuv_init(model, torch.randn(128, 64))
    >>> all(abs(v - 1) < 1e-3 for v in variances.values())
    True
    """
    from latent_drift.stability.initialization.schemes import orthogonal_init

    if not target_var > 0:
        raise UsageError(f"lsuv_init: target_var must be positive; got {target_var}")
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, _ConvNd))]
    scaled: set[int] = set()
    measured: dict[str, float] = {}
    names = {id(module): name for name, module in layers}

    def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        weight: Tensor = module.weight  # type: ignore[assignment]
        if id(weight) in scaled or not bool(weight.any()):
            return output
        scaled.add(id(weight))
        variance = _variance(output)
        if not variance.isfinite():
            raise UsageError(f"lsuv_init: the output of {names[id(module)]} is not finite on this batch; check the data for NaN, Inf and scale")
        if variance == 0:
            return output
        factor = (target_var / variance).sqrt()
        weight.mul_(factor.to(weight.dtype))
        return output * factor.to(output.dtype)  # biases are 0 here: the output is linear in the weight

    def measure(module: nn.Module, inputs: Any, output: Tensor) -> None:
        measured.setdefault(names[id(module)], _variance(output).item())

    with undisturbed(model):
        # Weights come from a stream of their own, so that the caller's goes on as if nothing had been drawn from it.
        torch.manual_seed(int(torch.randint(2**62, ()).item()))
        for _, module in layers:
            weight: Tensor = module.weight  # type: ignore[assignment]
            if orthogonal and bool(weight.any()) and id(weight) not in scaled:
                scaled.add(id(weight))
                orthogonal_init(weight)
            if isinstance(module.bias, Tensor):
                module.bias.zero_()
        for hook in (scale, measure):
            scaled.clear()
            handles = [module.register_forward_hook(hook) for _, module in layers]
            try:
                call_model(model, data_batch)
            finally:
                for handle in handles:
                    handle.remove()
    if not measured:
        raise UsageError("lsuv_init: the forward pass reached no linear or convolutional layer")
    return measured


def _variance(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).var(correction=0)
