"""The state of one tensor in numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latent_drift.numerics.finite import dense_values


def check_tensor_health(tensor: Tensor, name: str = "tensor") -> dict[str, Any]:
    """Name, shape, dtype, device, whether there is NaN or inf, and range, mean and standard deviation of the finite elements.

    Args:
        tensor: any dtype, layout and device; complex numbers count as pairs, sparse tensors by their stored values.
        name: what to call it.

    Returns:
        `name, shape, dtype, device, has_nan, has_inf, min, max, mean, std`; the last four are None where no element is finite (std also
        for a single one: 0.0). Statistics are formed in float64, one read from the device.

    >>> import torch
    >>> health = check_tensor_health(torch.tensor([1.0, float("nan"), 3.0]), "weights")
    >>> health["has_nan"], health["mean"], health["max"]
    (True, 2.0, 3.0)
    """
    values = dense_values(tensor).reshape(-1)
    wide = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    finite = wide.isfinite()
    count = finite.sum()
    zeros = torch.zeros_like(wide)
    kept = torch.where(finite, wide, zeros)
    mean = kept.sum() / count.clamp(min=1)
    variance = torch.where(finite, (wide - mean).square(), zeros).sum() / (count - 1).clamp(min=1)
    if wide.numel():
        low = torch.where(finite, wide, torch.full_like(wide, torch.inf)).min()
        high = torch.where(finite, wide, torch.full_like(wide, -torch.inf)).max()
    else:
        low = high = mean
    numbers = torch.stack([count.to(wide), wide.isnan().sum().to(wide), wide.isinf().sum().to(wide), low, high, mean, variance.sqrt()]).tolist()
    some = numbers[0] > 0
    return {
        "name": name,
        "shape": tuple(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "device": str(tensor.device),
        "has_nan": numbers[1] > 0,
        "has_inf": numbers[2] > 0,
        "min": numbers[3] if some else None,
        "max": numbers[4] if some else None,
        "mean": numbers[5] if some else None,
        "std": numbers[6] if some else None,
    }


def check_tensor(tensor: Tensor, name: str = "tensor") -> dict[str, Any]:
    """`check_tensor_health` under its short name.

    >>> import torch
    >>> check_tensor(torch.zeros(2))["has_inf"]
    False
    """
    return check_tensor_health(tensor, name)
