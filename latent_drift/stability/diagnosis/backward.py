"""Faults that show in the gradients."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from latent_drift.stability.diagnosis.fault import Fault

_EXPLODING_NORM = 1e3
_GROWTH = 1e3
_VANISHING_RATIO = 1e5
_UNDERFLOW_SHARE = 0.2


def unreached(model: nn.Module, gradients: dict[str, Tensor | None], executed: Collection[str], in_optimizer: set[int] | None) -> list[Fault]:
    """Layers that took part in the forward pass and get no gradient (detached), or do not want one (frozen)."""
    faults = []
    # by tensor: a tied weight has several names, and its gradient is listed under the first
    reached = {id(model.get_parameter(key)) for key, gradient in gradients.items() if gradient is not None}
    detached: list[str] = []
    frozen: list[str] = []
    for name, module in model.named_modules():
        if name not in executed:
            continue
        own = {f"{name}.{key}".lstrip("."): p for key, p in module.named_parameters(recurse=False)}
        if not own:
            continue
        if any(p.requires_grad for p in own.values()) and not any(id(p) in reached for p in own.values()):
            detached.append(name)
        stuck = [key for key, p in own.items() if not p.requires_grad or (in_optimizer is not None and id(p) not in in_optimizer)]
        if len(stuck) == len(own):
            frozen.append(name)
    trained = [p for p in model.parameters() if p.requires_grad]
    if detached:
        faults.append(
            Fault(
                "detached_graph",
                detached[-1],
                f"{len(detached)} of the layers that took part got no gradient: {', '.join(detached[:5])}{', ...' if len(detached) > 5 else ''}",
                "Look behind the last of them for .detach(), .item(), .data, numpy, argmax, or no_grad",
            )
        )
    if frozen and trained:
        for name in frozen[:5]:
            parameters = [p for p in model.get_submodule(name).parameters(recurse=False)]
            why = "requires_grad is False" if any(not p.requires_grad for p in parameters) else "the optimizer does not hold its parameters"
            faults.append(
                Fault(
                    "frozen_layer",
                    name,
                    f"{why}, while {len(trained)} other parameters train",
                    "If that is not meant, set requires_grad, or hand the parameters to the optimizer",
                )
            )
    return faults


def gradient_faults(
    model: nn.Module, gradients: dict[str, Tensor | None], stds: dict[str, float], *, large_inputs: bool, explained: bool
) -> list[Fault]:
    """Exploding and vanishing gradients, symmetric units.

    Args:
        stds: standard deviation of each layer's output, in the order of execution.
        large_inputs: the inputs are out of scale themselves, so sizes alone prove nothing.
        explained: dead or saturated layers were found: small gradients follow from them.
    """
    faults: list[Fault] = []
    norms = {name: torch.linalg.vector_norm(g.detach().double()).item() for name, g in gradients.items() if g is not None}
    weights = {name: norm for name, norm in norms.items() if name.endswith("weight") and _dimensions(model, name) >= 2}
    total = math.hypot(*norms.values()) if norms else 0.0
    linear = [(n, s) for n, s in stds.items() if n and isinstance(_module(model, n), (nn.Linear, _ConvNd)) and s > 0]
    growth = linear[-1][1] / linear[0][1] if len(linear) > 1 else 1.0
    if not math.isfinite(total):
        worst = next(name for name, norm in norms.items() if not math.isfinite(norm))
        return [
            Fault(
                "exploding",
                worst,
                f"its gradient is not finite ({norms[worst]})",
                "Normalise activations, scale the initialisation by depth, or compute in float32",
            )
        ]
    if (total > _EXPLODING_NORM and not large_inputs) or (large_inputs and growth > _GROWTH):
        worst = max(norms, key=lambda name: norms[name])
        more = f"; activations grow {growth:.3g} times from {linear[0][0]} to {linear[-1][0]}" if growth > 10 else ""
        faults.append(
            Fault(
                "exploding",
                worst,
                f"gradient norm {total:.4g}, {norms[worst]:.4g} of it here{more}",
                "Initialise by variance (He, orthogonal, LSUV), normalise, and clip",
            )
        )
    positive = {name: norm for name, norm in weights.items() if norm > 0}
    if len(positive) > 1 and not explained:
        names = list(positive)
        smallest, largest = min(positive, key=lambda n: positive[n]), max(positive, key=lambda n: positive[n])
        ratio = positive[largest] / positive[smallest]
        if ratio > _VANISHING_RATIO and names.index(smallest) < names.index(largest) and not faults:
            faults.append(
                Fault(
                    "vanishing",
                    smallest,
                    f"gradient norm {positive[smallest]:.3g} against {positive[largest]:.3g} in {largest}, a ratio of {ratio:.2g}",
                    "Use ReLU or GELU with He initialisation, residual connections, or normalisation",
                )
            )
    return faults + _symmetric(model, gradients)


def _symmetric(model: nn.Module, gradients: dict[str, Tensor | None]) -> list[Fault]:
    """Hidden layers whose units all have the same weights and the same gradient: they will stay one unit for ever."""
    faults = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd)) or module.weight.shape[0] < 2:
            continue
        gradient = gradients.get(f"{name}.weight".lstrip("."))
        weight = module.weight.detach()
        if gradient is None or not _rows_equal(weight) or not _rows_equal(gradient.detach()):
            continue
        if bool(weight.any()) or not bool(gradient.any()):
            faults.append(
                Fault(
                    "symmetric_init",
                    name,
                    f"all {weight.shape[0]} units have the same weights and the same gradient",
                    "Initialise with random weights",
                )
            )
    return faults[:1]


def _rows_equal(x: Tensor) -> bool:
    flat = x.reshape(x.shape[0], -1).double()
    return bool((flat - flat[:1]).abs().max() <= 1e-6 * flat.abs().max())


def underflow(gradients: dict[str, Tensor | None], reference: dict[str, Tensor | None] | None) -> list[Fault]:
    """Gradients that are 0 in the model's half precision and are not in float32, or subnormal in float32 itself."""
    worst: tuple[float, str, str] = (0.0, "", "")
    for name, gradient in gradients.items():
        if gradient is None or gradient.numel() == 0:
            continue
        exact = None if reference is None else reference.get(name)
        if exact is not None:
            nonzero = exact != 0
            lost = (nonzero & (gradient == 0)).sum() / nonzero.sum().clamp(min=1)
            what = f"of its gradient's elements are 0 in {str(gradient.dtype).removeprefix('torch.')} and not in float32"
        else:
            size = gradient.abs()
            lost = ((size > 0) & (size < torch.finfo(gradient.dtype).smallest_normal)).sum() / gradient.numel()
            what = "of its gradient's elements are subnormal"
        if float(lost) > worst[0]:
            worst = (float(lost), name, what)
    if worst[0] > _UNDERFLOW_SHARE:
        return [
            Fault(
                "underflow",
                worst[1],
                f"{worst[0]:.0%} {worst[2]}",
                "Scale the loss (DynamicLossScaler), keep float32 weights under autocast, or use bfloat16",
            )
        ]
    return []


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _dimensions(model: nn.Module, name: str) -> int:
    return model.get_parameter(name).dim()
