"""Variance of activations and gradients through depth, per initialiser and activation, beside what mean-field theory predicts.

`python -m tests.stability.variance_through_depth [SCHEME ...]` writes a JSON line per pair; the record in `tests/stability/recorded` is its
output at width 512, depth 100, 16 seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.stability import ResidualBranch, StableInitializer, fixup_init, gain_of, orthogonal_init, rezero_init, spectral_norm_init

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}
RESIDUAL = ("depth-scaled", "rezero", "fixup", "plain residual")
SCHEMES = ("he", "xavier", "orthogonal", "lsuv", *RESIDUAL, "spectral")


class _Elementwise(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _fill(scheme: str, activation: str, width: int) -> Tensor:
    weight = torch.empty(width, width)
    gain = gain_of(activation)
    if scheme == "xavier":
        return StableInitializer.xavier_uniform_stable(weight, gain)
    if scheme == "he":
        return StableInitializer.kaiming_normal_stable(weight, nonlinearity=activation)
    if scheme == "spectral":
        return spectral_norm_init(weight.normal_(), gain)
    if scheme == "capped":  # the audit's: a standard deviation of at most 0.1
        return weight.normal_(0, min(gain / math.sqrt(width), 0.1))
    return orthogonal_init(weight, gain if scheme == "orthogonal" else 1.0)


def _residual_blocks(scheme: str, activation: str, width: int, depth: int) -> list[nn.Module]:
    """`depth` blocks x + alpha * branch(x), the branch an activation and one linear layer (two for Fixup, whose last one is 0)."""
    f = _Elementwise(ACTIVATIONS[activation])

    def linear() -> nn.Linear:
        return nn.Linear(width, width, bias=False)

    if scheme == "fixup":
        model = nn.Sequential(*[ResidualBranch(nn.Sequential(linear(), f, linear()), "fixup") for _ in range(depth)])
        fixup_init(model)
    else:
        model = nn.Sequential(*[ResidualBranch(nn.Sequential(f, linear()), "rezero") for _ in range(depth)])
        for index, branch in enumerate(model):
            weight = branch.branch[1].weight
            if scheme == "depth-scaled":
                StableInitializer.residual_init(weight, depth, index)
            else:
                StableInitializer.kaiming_normal_stable(weight)
        if scheme == "rezero":
            rezero_init(model)
        else:
            for branch in model:
                nn.init.ones_(branch.alpha)
    return list(model)


def _moment(x: Tensor) -> float:
    return x.detach().double().square().mean().item()


def one_seed(scheme: str, activation: str, width: int, depth: int, batch: int = 64) -> tuple[float, float]:
    """(second moment of the last layer's input to its nonlinearity over the first's, squared gradient norm at the first over the last);
    for residual schemes those of the stream after the first block and after the last."""
    f = ACTIVATIONS[activation]
    x = torch.randn(batch, width)
    layers: list[Callable[[Tensor], Tensor]]
    if scheme in RESIDUAL:
        layers = list(_residual_blocks(scheme, activation, width, depth))
        outer: Callable[[Tensor], Tensor] = ACTIVATIONS["linear"]
    else:
        layers, outer = [], f
        h = x
        with torch.no_grad():
            for _ in range(depth):
                w = _fill(scheme, activation, width)
                z = h @ w.t()
                if scheme == "lsuv":
                    factor = z.var(correction=0).rsqrt()
                    w, z = w * factor, z * factor
                layers.append(nn.Linear(width, width, bias=False, device="meta"))
                layers[-1].weight = nn.Parameter(w)  # type: ignore[attr-defined]
                h = f(z)
    first = last = None
    h = x.requires_grad_()
    for layer in layers:
        last = layer(h)
        first = last if first is None else first
        h = outer(last)
    assert first is not None
    assert last is not None
    start, end = torch.autograd.grad(h, (first, last), torch.randn_like(h))
    return _moment(last) / _moment(first), _moment(start) / _moment(end)


def measure(scheme: str, activation: str, width: int = 512, depth: int = 100, seeds: int = 16) -> dict[str, Any]:
    """Mean, median and extremes of both ratios over the seeds, with the prediction."""
    pairs = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        pairs.append(one_seed(scheme, activation, width, depth))
    row: dict[str, Any] = {"scheme": scheme, "activation": activation, "width": width, "depth": depth, "seeds": seeds}
    for name, values in (("activation", sorted(p[0] for p in pairs)), ("gradient", sorted(p[1] for p in pairs))):
        row |= {f"{name}_mean": sum(values) / seeds, f"{name}_median": values[seeds // 2], f"{name}_min": values[0], f"{name}_max": values[-1]}
    row["predicted_activation"], row["predicted_gradient"] = predicted(scheme, activation, width, depth)
    return row


# --- theory ------------------------------------------------------------------------------------------------

_Z = torch.linspace(-12.0, 12.0, 48_000, dtype=torch.float64)  # an even number: a kink at 0 lies between two points
_DENSITY = torch.exp(-_Z * _Z / 2) / math.sqrt(2 * math.pi)


def gaussian_moments(activation: str, q: float) -> tuple[float, float]:
    """(E f(z)**2, E f'(z)**2) for z ~ N(0, q)."""
    z = (_Z * math.sqrt(q)).requires_grad_()
    value = ACTIVATIONS[activation](z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return torch.trapezoid(value.detach() ** 2 * _DENSITY, _Z).item(), torch.trapezoid(slope**2 * _DENSITY, _Z).item()


def _largest_eigenvalue(n: int) -> float:
    """Mean of the largest eigenvalue of W W^T for a standard normal n x n matrix W (Johnstone 2001, theorem 1.1; -1.2065 is the Tracy-Widom mean)."""
    edge = math.sqrt(n - 1) + math.sqrt(n)
    return edge**2 - 1.2065 * edge * (1 / math.sqrt(n - 1) + 1 / math.sqrt(n)) ** (1 / 3)


def predicted(scheme: str, activation: str, width: int, depth: int) -> tuple[float, float]:
    """Both ratios in the limit of infinite width: q' = v E f(z)**2 with z ~ N(0, q), and each layer multiplies squared gradients by v E f'(z)**2.

    v is the weights' variance times the width; LSUV chooses it so that q stays 1; a residual block adds its branch's second moment. One q stands for
    every sample: under LSUV with SiLU and GELU, whose map of q is unstable, the norms of single samples drift apart while their mean is held at
    1, and the gradient grows less than predicted.

    *Source*: Poole et al. 2016, equations 3 and 4; Schoenholz et al. 2017, equation 9.
    """
    gain = gain_of(activation)
    v = {"spectral": gain**2 * width / _largest_eigenvalue(width), "capped": min(gain / math.sqrt(width), 0.1) ** 2 * width}.get(scheme, gain**2)
    if scheme in ("fixup", "rezero"):
        return 1.0, 1.0
    if scheme in RESIDUAL:
        v = 2.0 / depth if scheme == "depth-scaled" else 2.0
        first = q = 1.0 + v * gaussian_moments(activation, 1.0)[0]
        gradient = 1.0
        for _ in range(depth - 1):
            value, slope = gaussian_moments(activation, q)
            q, gradient = q + v * value, gradient * (1 + v * slope)
        return q / first, gradient
    first = q = 1.0 if scheme == "lsuv" else v
    gradient = 1.0
    for _ in range(depth - 1):
        value, slope = gaussian_moments(activation, q)
        if scheme == "lsuv":
            v = q / value
        q, gradient = v * value, gradient * v * slope
    return q / first, gradient


def predicted_spread(scheme: str, activation: str, width: int, depth: int) -> float:
    """Standard deviation over seeds that theory predicts for Gaussian weights, gain kept exactly: a layer multiplies the second moment by
    a chi-square mean of relative variance 2/n (linear) or 5/n (ReLU: E[relu(z)**4] / E[relu(z)**2]**2 - 1 = 5), independent from layer to layer."""
    per_layer = {"linear": 2.0, "relu": 5.0}[activation] / width
    return math.sqrt((1 + per_layer) ** (depth - 1) - 1) if scheme in ("he", "xavier") else 0.0


def main() -> None:
    """Write a JSON line per scheme and activation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemes", nargs="*", default=SCHEMES, help=f"of {', '.join((*SCHEMES, 'capped'))}")
    for name, default in (("width", 512), ("depth", 100), ("seeds", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for scheme in arguments.schemes:
        for activation in ACTIVATIONS:
            row = measure(scheme, activation, arguments.width, arguments.depth, arguments.seeds)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
