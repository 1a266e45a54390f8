"""Variance of activations and gradients through depth, per initialiser and activation: the measurement behind the table.

`python -m tests.stability.variance_through_depth FILE` measures every pair at width 512, 100 layers, 16 seeds and writes JSON.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.stability import StableInitializer, gain_of, orthogonal_init

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}


def _fill(scheme: str, activation: str, width: int) -> Tensor:
    weight = torch.empty(width, width)
    gain = gain_of(activation)
    if scheme == "xavier":
        return StableInitializer.xavier_uniform_stable(weight, gain)
    if scheme == "he":
        return (
            StableInitializer.kaiming_normal_stable(weight, nonlinearity=activation)
            if activation in ("relu", "linear", "tanh")
            else weight.normal_(0, gain / math.sqrt(width))
        )
    if scheme == "capped":  # the audit's: a standard deviation of at most 0.1
        return weight.normal_(0, min(gain / math.sqrt(width), 0.1))
    return orthogonal_init(weight, gain if scheme == "orthogonal" else 1.0)


def one_seed(scheme: str, activation: str, width: int, depth: int, batch: int = 64) -> tuple[float, float]:
    """(second moment of the last layer's input to its nonlinearity over the first's, squared gradient norm at the first over the last)."""
    f = ACTIVATIONS[activation]
    x = torch.randn(batch, width)
    weights = []
    h = x
    with torch.no_grad():
        for _ in range(depth):
            w = _fill(scheme, activation, width)
            z = h @ w.t()
            if scheme == "lsuv":
                factor = z.var(correction=0).rsqrt()
                w, z = w * factor, z * factor
            weights.append(nn.Parameter(w))
            h = f(z)
    first = last = None
    h = x.requires_grad_()
    for w in weights:
        z = h @ w.t()
        if first is None:
            first = z
        last = z
        h = f(z)
    assert first is not None
    assert last is not None
    start, end = torch.autograd.grad(h, (first, last), torch.randn_like(h))
    return (last.square().mean() / first.square().mean()).item(), (start.square().mean() / end.square().mean()).item()


def measure(scheme: str, activation: str, width: int = 512, depth: int = 100, seeds: int = 16) -> dict[str, Any]:
    """Mean, median and largest ratio over the seeds."""
    pairs = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        pairs.append(one_seed(scheme, activation, width, depth))
    row: dict[str, Any] = {"scheme": scheme, "activation": activation, "width": width, "depth": depth, "seeds": seeds}
    for name, values in (("activation", sorted(p[0] for p in pairs)), ("gradient", sorted(p[1] for p in pairs))):
        row |= {f"{name}_mean": sum(values) / seeds, f"{name}_median": values[seeds // 2], f"{name}_min": values[0], f"{name}_max": values[-1]}
    return row


def predicted_spread(scheme: str, activation: str, width: int, depth: int) -> float:
    """Standard deviation over seeds that theory predicts for Gaussian weights, gain kept exactly: a layer multiplies the second moment by
    a chi-square mean of relative variance 2/n (linear) or 5/n (ReLU: E[relu(z)**4] / E[relu(z)**2]**2 - 1 = 5), independent from layer to layer."""
    per_layer = {"linear": 2.0, "relu": 5.0}[activation] / width
    return math.sqrt((1 + per_layer) ** (depth - 1) - 1) if scheme in ("he", "xavier") else 0.0


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [measure(s, a) for s in ("he", "xavier", "orthogonal", "lsuv", "capped") for a in ACTIVATIONS]
    Path(sys.argv[1]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
