"""What the weights of a model look like beside what theory would give them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.stability.initialization.fans import fans_of


@torch.no_grad()
def describe(model: nn.Module) -> list[dict[str, Any]]:
    """One row per weight of at least two dimensions: `name, layer, shape, fan_in, fan_out, mean, std, xavier_std, he_std,
    std_over_he, zero, tied_to`.

    `zero` is the share of exact zeros; `tied_to` names the earlier weight it is the same tensor as, or None. Fans, and what is derived
    from them, are None for parameters that belong to no known kind of layer.

    >>> import torch
    >>> row = describe(torch.nn.Sequential(torch.nn.Linear(8, 2)))[0]
    >>> row["name"], row["fan_in"], row["he_std"]
    ('0.weight', 8.0, 0.5)
    """
    rows: list[dict[str, Any]] = []
    seen: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{key}".lstrip(".")
            if parameter.dim() < 2:
                continue
            tied_to = seen.get(id(parameter))
            seen.setdefault(id(parameter), name)
            rows.append(_row(name, module, key, parameter, tied_to))
    return rows


def _row(name: str, module: nn.Module, key: str, weight: Tensor, tied_to: str | None) -> dict[str, Any]:
    fan_in = fan_out = None
    if key == "weight":
        try:
            fan_in, fan_out = fans_of(module)
        except UsageError:
            pass
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    mean, std, zero = (wide.mean().item(), wide.std(correction=0).item(), (weight == 0).float().mean().item()) if weight.numel() else (0.0, 0.0, 0.0)
    he = math.sqrt(2.0 / fan_in) if fan_in else None
    return {
        "name": name,
        "layer": type(module).__name__,
        "shape": tuple(weight.shape),
        "fan_in": fan_in,
        "fan_out": fan_out,
        "mean": mean,
        "std": std,
        "xavier_std": math.sqrt(2.0 / (fan_in + fan_out)) if fan_in and fan_out else None,
        "he_std": he,
        "std_over_he": std / he if he else None,
        "zero": zero,
        "tied_to": tied_to,
    }
