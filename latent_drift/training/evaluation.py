"""How good a trained model is, on data that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_drift.errors import UsageError
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.log_alphabet import LOG_CATEGORIES
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.sequences import PROMPT, T
from latent_drift.training.batches import Data
from latent_drift.training.samples import draw_sequences, is_well_formed

ITEMS: Final = {"ode": 256, "raccoon": 4000}
"""Held-out items that an evaluation takes where nobody says how many."""

DRAWN: Final = 64
"""Sequences that are drawn to see how many the data could have produced."""

_BATCH: Final = {"ode": 64, "raccoon": 512}


def evaluate(kind: str, model: nn.Module, data: Data, device: torch.device, *, seed: int = 0) -> dict[str, Any]:
    """Figures of a model on all items of `data`, as plain data; the model is left in evaluation mode.

    For a raccoon: `accuracy`, `cross_entropy` (nats), `recall` by class, and `confusion`, by true class the count of each predicted one.
    For an ode: `recon` (nats a token), `ode_reg`, `latent_ep`, and `well_formed`, the share of sequences drawn with `seed` that the
    synthetic data could have produced.

    Raises:
        UsageError: no items.
    """
    if len(data) == 0:
        raise UsageError("--data has no items; nothing can be evaluated")
    model.eval()
    with torch.no_grad():
        if isinstance(model, RaccoonLogClassifier):
            return _of_classifier(model, data, device)
        assert isinstance(model, DeterministicLatentODE)
        return _of_sequences(model, data, device, seed)


def _batches(data: Data, size: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    for first in range(0, len(data), size):
        yield tuple(tensor.to(device) for tensor in data.batch(range(first, min(first + size, len(data)))))


def _of_classifier(model: RaccoonLogClassifier, data: Data, device: torch.device) -> dict[str, Any]:
    classes = len(LOG_CATEGORIES)
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    nats = 0.0
    for tokens, labels in _batches(data, _BATCH["raccoon"], device):
        logits = model.predict_logits(tokens)
        nats += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        confusion += torch.bincount(labels.cpu() * classes + logits.argmax(-1).cpu(), minlength=classes**2).view(classes, classes)
    right, of_class = confusion.diagonal(), confusion.sum(1)
    return {
        "items": len(data),
        "accuracy": int(right.sum()) / len(data),
        "cross_entropy": nats / len(data),
        "recall": {name: int(right[i]) / int(of_class[i]) if of_class[i] else None for i, name in enumerate(LOG_CATEGORIES)},
        "confusion": {name: dict(zip(LOG_CATEGORIES, confusion[i].tolist(), strict=True)) for i, name in enumerate(LOG_CATEGORIES)},
    }


def _of_sequences(model: DeterministicLatentODE, data: Data, device: torch.device, seed: int) -> dict[str, Any]:
    totals = {"recon": 0.0, "latent_ep": 0.0, "ode_reg": 0.0}
    for (tokens,) in _batches(data, _BATCH["ode"], device):
        recon, latent, ode = model.loss_components(tokens)
        for name, value in (("recon", recon), ("latent_ep", latent), ("ode_reg", ode)):
            totals[name] += float(value) * tokens.shape[0]
    drawn = list(draw_sequences(model, DRAWN, PROMPT + T, seed))
    return {
        "items": len(data),
        **{name: total / len(data) for name, total in totals.items()},
        "well_formed": sum(map(is_well_formed, drawn)) / len(drawn),
        "drawn": len(drawn),
    }
