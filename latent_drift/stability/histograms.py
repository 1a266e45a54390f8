"""TensorBoard histograms of gradients that survive NaN."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from latent_drift.numerics.finite import dense_values


def gradient_histograms(model: nn.Module, writer: Any, step: int, prefix: str = "gradients") -> dict[str, int]:
    """Write a histogram of every gradient's finite elements, and how many were not finite.

    Args:
        model: parameters without a gradient are left out.
        writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_histogram` and `add_scalar`.
        step: global step.
        prefix: of the tags.

    Returns:
        name -> number of non-finite elements.

    *Numerics*: TensorBoard's own histogram raises ValueError on a tensor of NaN. A gradient without a finite element gets no histogram, only
    its count under `<prefix>_nonfinite/<name>`.

    >>> import torch
    >>> class Writer:
    ...     def add_histogram(self, tag, values, step): print(tag, values.tolist())
    ...     def add_scalar(self, tag, value, step): print(tag, value)
    >>> layer = torch.nn.Linear(2, 1, bias=False); layer.weight.grad = torch.tensor([[float("nan"), 2.0]])
    >>> gradient_histograms(layer, Writer(), 0)
    gradients/weight [2.0]
    gradients_nonfinite/weight 1
    {'weight': 1}
    """
    counts = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        values = dense_values(parameter.grad).reshape(-1)
        values = values if values.dtype is torch.float64 else values.float()
        finite = values[torch.isfinite(values)]
        counts[name] = values.numel() - finite.numel()
        if finite.numel():
            writer.add_histogram(f"{prefix}/{name}", finite, step)
        writer.add_scalar(f"{prefix}_nonfinite/{name}", counts[name], step)
    return counts
