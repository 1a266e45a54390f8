"""Faults of the batch itself, before any model has seen it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from latent_drift.stability.calling import map_tensors
from latent_drift.stability.diagnosis.fault import Fault

# Root mean square of a feature beyond which layers initialised for unit variance are off by that factor.
_LARGE, _SMALL = 30.0, 1e-3
_SCALE_RATIO = 1e3
_SAMPLES_FOR_LABELS = 100


def tensors_of(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested arguments, with a name for people."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{name}[{index}]")


def nonfinite_rows(inputs: Any, labels: Any) -> tuple[list[Fault], Tensor | None]:
    """Faults for NaN and Inf, and a mask of the rows that are clean (None if all are)."""
    faults: list[Fault] = []
    clean: Tensor | None = None
    for name, tensor in (*tensors_of(inputs, "inputs"), *tensors_of(labels, "labels")):
        if not tensor.is_floating_point() or tensor.dim() == 0 or tensor.numel() == 0:
            continue
        bad = ~torch.isfinite(tensor).flatten(1).all(1) if tensor.dim() > 1 else ~torch.isfinite(tensor)
        if not bool(bad.any()):
            continue
        rows = bad.nonzero().flatten().tolist()
        count = int((~torch.isfinite(tensor)).sum())
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        faults.append(
            Fault(
                "nonfinite_data",
                name,
                f"{count} NaN or Inf in row{'s' * (len(rows) > 1)} {shown} of {len(bad)}",
                "Drop or repair these rows before training",
            )
        )
        clean = ~bad if clean is None or len(clean) != len(bad) else clean & ~bad
    return faults, clean


def keep_rows(value: Any, mask: Tensor) -> Any:
    """The rows of every tensor whose first axis has the mask's length."""
    return map_tensors(lambda t: t[mask] if t.dim() and len(t) == len(mask) else t, value)


def unscaled_inputs(model: nn.Module, inputs: Any) -> list[Fault]:
    """Inputs whose scale is far from one, unless the model begins by normalising them."""
    first = next((m for m in model.modules() if not any(True for _ in m.children()) and any(True for _ in m.parameters())), None)
    if isinstance(first, (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        return []
    faults = []
    for name, tensor in tensors_of(inputs, "inputs"):
        if not tensor.is_floating_point() or tensor.dim() < 2 or len(tensor) < 2:
            continue
        x = tensor.detach().double().flatten(1) if tensor.dim() == 2 else tensor.detach().double().transpose(0, 1).flatten(1).t()
        rms = x.square().mean().sqrt().item()
        std = x.std(0, correction=0)
        varied = std[std > 0]
        ratio = (varied.max() / varied.min()).item() if varied.numel() > 1 else 1.0
        if rms > _LARGE or 0 < rms < _SMALL:
            faults.append(
                Fault(
                    "unscaled_inputs",
                    name,
                    f"root mean square {rms:.4g}, range [{x.min():.4g}, {x.max():.4g}]",
                    "Standardise them: subtract the mean, divide by the standard deviation",
                )
            )
        elif tensor.dim() == 2 and ratio > _SCALE_RATIO and varied.max() > 1:
            worst = int(std.argmax())
            faults.append(
                Fault(
                    "unscaled_inputs",
                    name,
                    f"feature scales differ {ratio:.3g} times; feature {worst} has standard deviation {std[worst]:.4g}",
                    "Standardise each feature",
                )
            )
    return faults


def labels_without_signal(inputs: Any, labels: Any, model_accuracy: float | None, trial_accuracy: float | None, held_out: int) -> list[Fault]:
    """Class labels that nothing predicts better than guessing: neither neighbours, nor a linear probe, nor the model on held-out rows.

    Looked at from 100 rows on; each probe must stay within two standard errors of the commonest class.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1 or len(labels) < _SAMPLES_FOR_LABELS:
        return []
    x = _features(inputs, len(labels))
    classes = torch.unique(labels)
    if x is None or len(classes) < 2:
        return []
    n = len(labels)
    share = max((labels == c).double().mean().item() for c in classes)
    spread = math.sqrt(share * (1 - share) / n)
    neighbours, linear = _nearest_neighbours(x, labels), _linear_probe(x, labels, classes)
    probes = {"5 nearest neighbours": neighbours, "a linear probe": linear}
    if model_accuracy is not None and model_accuracy > share + 2 * spread:
        return []
    if trial_accuracy is not None and trial_accuracy > share + 2 * math.sqrt(share * (1 - share) / max(held_out, 1)):
        return []
    if max(probes.values()) > share + 2 * spread:
        return []
    seen = ", ".join(f"{name} {value:.2f}" for name, value in probes.items())
    trial = "" if trial_accuracy is None else f", the model itself {trial_accuracy:.2f} on held-out rows"
    return [
        Fault(
            "shuffled_labels",
            "labels",
            f"nothing beats guessing ({share:.2f}): {seen}{trial}, n = {n}",
            "Check that inputs and labels are paired in the same order; that a shuffle moved both",
        )
    ]


def _features(inputs: Any, rows: int) -> Tensor | None:
    found = [t for _, t in tensors_of(inputs, "inputs") if t.dim() >= 1 and len(t) == rows]
    if not found:
        return None
    x = found[0].detach()
    if not x.is_floating_point():  # tokens: how often each occurs
        flat = x.reshape(rows, -1).long()
        flat = flat - flat.min()
        if flat.numel() == 0 or int(flat.max()) > 4096:
            return None
        x = torch.zeros(rows, int(flat.max()) + 1, dtype=torch.float64).scatter_add_(1, flat.cpu(), torch.ones(flat.shape, dtype=torch.float64))
    x = x.double().reshape(rows, -1).cpu()
    x = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-9)
    return x[:, x.abs().sum(0) > 0] if x.numel() else None


def _nearest_neighbours(x: Tensor, labels: Tensor) -> float:
    distance = torch.cdist(x, x).fill_diagonal_(math.inf)
    nearest = distance.topk(min(5, len(x) - 1), largest=False).indices
    votes = labels.cpu()[nearest]
    return float((votes.mode(1).values == labels.cpu()).double().mean())


def _linear_probe(x: Tensor, labels: Tensor, classes: Tensor) -> float:
    """Leave-one-out accuracy of ridge regression onto class indicators, in closed form."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    targets = (labels.cpu()[:, None] == classes.cpu()[None]).double()
    gram = x @ x.t()
    hat = torch.linalg.solve(gram + 0.1 * gram.diagonal().mean() * torch.eye(len(x), dtype=x.dtype), gram)
    left_out = (hat @ targets - hat.diagonal()[:, None] * targets) / (1 - hat.diagonal()).clamp(min=1e-6)[:, None]
    return float((classes.cpu()[left_out.argmax(1)] == labels.cpu()).double().mean())
