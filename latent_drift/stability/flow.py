"""How gradients flow through a model, layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latent_drift.numerics.finite import dense_values
from latent_drift.numerics.shards import joined_norms

# Ratio of a layer's gradient-to-weight ratio to the median one from which it stands out.
_OUTSTANDING = 1e3


class GradientFlow(dict[str, dict[str, float]]):
    """name -> `norm, mean, max, weight_norm, ratio` of each parameter's gradient, in the model's order.

    Attributes:
        without_gradient: parameters that want a gradient and have none (frozen by accident, detached, unused).
        nonfinite: parameters whose gradient holds NaN or inf.
    """

    def __init__(self, rows: dict[str, dict[str, float]], without_gradient: list[str]) -> None:
        super().__init__(rows)
        self.without_gradient = without_gradient
        self.nonfinite = [name for name, row in rows.items() if not math.isfinite(row["norm"])]

    @property
    def total_norm(self) -> float:
        """The global gradient norm."""
        return math.hypot(*(row["norm"] for row in self.values()))

    def _typical(self) -> float:
        norms = sorted(row["norm"] for row in self.values() if math.isfinite(row["norm"]) and row["norm"] > 0)
        return norms[(len(norms) - 1) // 2] if norms else 0.0

    @property
    def vanishing(self) -> list[str]:
        """Parameters whose gradient norm is more than 1000 times below the median (or zero)."""
        typical = self._typical()
        return [name for name, row in self.items() if row["norm"] < typical / _OUTSTANDING]

    @property
    def exploding(self) -> list[str]:
        """Parameters whose gradient norm is more than 1000 times above the median, or not finite."""
        typical = self._typical()
        return [name for name, row in self.items() if not row["norm"] <= typical * _OUTSTANDING]

    def plot(self, path: str | Path | None = None, title: str = "Gradient flow") -> Any:
        """A matplotlib figure of mean and largest gradient magnitude per layer; written to `path` (PNG, SVG, PDF) if given.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from latent_drift.stability.plots import plot_gradient_flow

        return plot_gradient_flow(self, path, title)


@torch.no_grad()
def analyze_gradient_flow(model: nn.Module) -> GradientFlow:
    """Norm, mean and largest magnitude of every parameter's present gradient, beside the weight's norm; two reads from the device.

    Call it after `backward`. Tied weights appear once.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> flow = analyze_gradient_flow(model)
    >>> list(flow), flow.vanishing, flow.without_gradient
    (['0.weight', '0.bias', '1.weight', '1.bias'], [], [])
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    wide = torch.float64 if device.type != "mps" else torch.float32
    missing = [name for name, p in model.named_parameters() if p.grad is None and p.requires_grad]
    named = [(name, p, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    sizes = [dense_values(g).abs() for _, _, g in named]
    # means are formed in float64: the sum of large numbers may leave float32, though their mean does not
    rows = [torch.stack([s.mean(dtype=wide), s.max().to(wide)]).to(device) if s.numel() else torch.zeros(2, dtype=wide, device=device) for s in sizes]
    numbers = torch.stack(rows).tolist() if rows else []
    norms = joined_norms([*(g for _, _, g in named), *(p for _, p, _ in named)])
    table: dict[str, dict[str, float]] = {}
    for (name, _, _), (mean, largest), norm, weight_norm in zip(named, numbers, norms[: len(named)], norms[len(named) :], strict=True):
        table[name] = {
            "norm": norm,
            "mean": mean,
            "max": largest,
            "weight_norm": weight_norm,
            "ratio": norm / weight_norm if weight_norm else math.inf,
        }
    return GradientFlow(table, missing)
