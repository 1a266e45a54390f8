"""Training of the log classifier, and its life on a stream afterwards."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, RandomSampler

from latent_drift.config import StabilityConfig
from latent_drift.errors import UsageError
from latent_drift.models.batches import DEFAULT_BATCH, endless, loader_of
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.raccoon_steps import AbstractSteps, FlatSteps, LegacySteps, OptimizerSteps
from latent_drift.models.sizes import require_size

_LOG = logging.getLogger(__name__)

Batches = Iterable[tuple[Tensor, Tensor]]
"""A DataLoader, or anything that gives (tokens, labels) each time it is iterated."""

DEFAULT_STEPS: Final = 1000
DEFAULT_LR: Final = 3e-3  # accuracies after 1,000 steps: 0.995 at 3e-3 and 1e-2, 0.98 at 1e-3
LEGACY_LR: Final = 1e-3
RUNNING: Final = 100  # messages in the running accuracy

PRECISIONS: Final[dict[str, torch.dtype | None]] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the precisions of a forward pass: none, or the dtype of autocast."""


@dataclass(frozen=True, slots=True)
class RaccoonStep:
    """One step of training. Losses and accuracy are before the step; `norm` is the gradient norm before clipping."""

    step: int
    loss: float
    class_loss: float
    kl_loss: float
    ep_loss: float
    accuracy: float
    norm: float
    skipped: bool


def train_raccoon_classifier(
    model: RaccoonLogClassifier | DistributedDataParallel,
    dataloader: Batches | Dataset[Any],
    n_iter: int | None = None,
    device: torch.device | str | None = None,
    loss_weights: tuple[float, float, float] = (1.0, 0.1, 0.01),
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    precision: str = "float32",
    first_step: int = 0,
    on_step: Callable[[RaccoonStep], None] | None = None,
    config: StabilityConfig | None = None,
    legacy_compat: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Train for a number of steps, starting the data again as often as it takes.

    Args:
        model: moved to `device` and left in training mode; a DistributedDataParallel around one stays where it is.
        dataloader: gives batches (tokens (B, L), labels (B,)); a data set is loaded in shuffled batches.
        n_iter, num_steps: the number of steps under either name; 1,000 by default.
        device: where to train; where the model is by default.
        loss_weights: see `RaccoonLogClassifier.forward`.
        batch_size: for a data set, 32 by default.
        lr: peak learning rate of the AdamW that is built when `optimizer` is None, 3e-3 by default: warmed up over the first twentieth of
            the steps, then down a half cosine.
        optimizer: one built over the model's parameters, in place of AdamW; its rate is its own and the scheduler's.
        scheduler: a learning-rate scheduler of `optimizer`, stepped after each step that was taken.
        precision: of the forward pass: "float32" (the weights' own), or autocast to "bfloat16" or "float16", the latter with a loss scale.
        first_step: number of the first step, where a run with an optimizer of its own is continued.
        on_step: called with the record of every step (which reads the statistics from the device).
        config: None for the model's.
        legacy_compat: as published: AdamW at a constant 1e-3, neither clipped nor skipped nor bounded.

    Returns:
        The loss (detached) and the statistics of the last step.

    Raises:
        UsageError: numbers that cannot be used, or data without a single batch.
        IndexError: a token or label out of range.
        GiveUpError: too many steps in a row (config: `gradient.max_consecutive_skips`) had a loss or gradient that was not finite.

    *Numerics*: gradients are clipped to norm 1 and steps that are not finite are skipped (config: `gradient`); no step moves the weights by more than
    about 5 % of their norm (`flat_weights`), so that a rate a hundred times too high still learns.
    """
    steps = _one_of("train_raccoon_classifier", n_iter, num_steps, ("n_iter", "num_steps"), DEFAULT_STEPS)
    rate = (LEGACY_LR if legacy_compat else DEFAULT_LR) if lr is None else lr
    if not 0.0 < rate < math.inf:
        raise UsageError(f"train_raccoon_classifier: lr must be positive and finite; got {rate}")
    if precision not in PRECISIONS:
        raise UsageError(f"train_raccoon_classifier: precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if scheduler is not None and optimizer is None:
        raise UsageError("train_raccoon_classifier: a scheduler needs the optimizer that it was built for; give both")
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if device is None:
        device = next(inner.parameters()).device
    elif inner is model:
        model.to(device)
    device = torch.device(device)
    batches = endless(loader_of(dataloader, batch_size, shuffle=True), "train_raccoon_classifier")
    model.train()
    step: AbstractSteps
    if legacy_compat:
        step = LegacySteps(model, rate)
    elif optimizer is None and FlatSteps.serves(config or inner.config):
        step = FlatSteps(model, rate, steps, config or inner.config, scaled=precision == "float16")
    else:
        step = OptimizerSteps(model, rate, steps, config or inner.config, optimizer, scheduler, scaler_for=device if precision == "float16" else None)
    loss, stats = torch.zeros((), device=device), dict[str, Tensor]()
    try:
        for number in range(first_step, first_step + steps):
            tokens, labels = _whole_batch(next(batches))
            with torch.autocast(device.type, dtype=PRECISIONS[precision]) if precision != "float32" else nullcontext():
                loss, stats = model(tokens.to(device), labels.to(device), loss_weights)
            outcome = step(loss)
            loss = loss.detach()
            if outcome.skipped:
                _LOG.warning("step %d skipped: loss %s, gradient norm %s", number, float(loss), outcome.grad_norm)
            if on_step is not None:
                parts = {name: float(stats[name]) for name in ("class_loss", "kl_loss", "ep_loss", "accuracy")}
                on_step(RaccoonStep(number, float(loss), **parts, norm=outcome.grad_norm, skipped=outcome.skipped))
    finally:
        step.finish()
    return loss, stats


def continuous_learning_phase(
    model: RaccoonLogClassifier,
    dataloader: Batches | Dataset[Any],
    n_samples: int | None = None,
    device: torch.device | str | None = None,
    *,
    num_samples: int | None = None,
    batch_size: int | None = None,
    legacy_compat: bool = False,
) -> list[float]:
    """Go through a stream of messages, predicting each before learning from it.

    Args:
        model: moved to `device`; its mode is left as it was.
        dataloader: the stream; a data set, and a shuffled loader of a data set that drifts, are taken in the order of the indices,
            since shuffling would spread the drift over the whole stream.
        n_samples, num_samples: the number of messages under either name; once through the stream by default.
        device: where to learn; where the model is by default.
        batch_size: for a data set, 32 by default.
        legacy_compat: as published: the order of the loader, predictions from a sampled latent that skip SDE and flow, and running
            accuracies divided by 100 however few messages there were.

    Returns:
        For each message the share of right predictions among the last 100 up to it.

    Raises:
        UsageError: a number that cannot be used, or data without a single batch.
    """
    if n_samples is None and num_samples is None:
        total = None
    else:
        total = _one_of("continuous_learning_phase", n_samples, num_samples, ("n_samples", "num_samples"), 0)
    device = _placed(model, device)
    loader = loader_of(dataloader, batch_size, shuffle=False)
    if not legacy_compat:
        loader = _in_stream_order(loader)
    stream = iter(loader) if total is None else endless(loader, "continuous_learning_phase")
    recent: deque[bool] = deque(maxlen=RUNNING)
    accuracies: list[float] = []
    while total is None or len(accuracies) < total:
        batch = next(stream, None)
        if batch is None:
            break
        left = None if total is None else total - len(accuracies)
        tokens, labels = (part[:left].to(device) for part in _whole_batch(batch))
        with torch.no_grad():
            if legacy_compat:
                predicted = model.classify(model.sample_latent(*model.encode(tokens))).argmax(dim=-1)
            else:
                predicted = model.predict(tokens)
        for right in (predicted == labels).tolist():
            recent.append(right)
            accuracies.append(sum(recent) / (RUNNING if legacy_compat else len(recent)))
        model.continuous_update(tokens, labels)
    return accuracies


def _one_of(owner: str, first: int | None, second: int | None, names: tuple[str, str], default: int) -> int:
    if first is not None and second is not None:
        raise UsageError(f"{owner}: give {names[0]} or {names[1]}, not both; got {first} and {second}")
    value = default if first is None and second is None else first if second is None else second
    assert value is not None
    return require_size(value, names[0], owner, at_least=0)


def _placed(model: RaccoonLogClassifier, device: torch.device | str | None) -> torch.device:
    if device is None:
        return next(model.parameters()).device
    model.to(device)
    return torch.device(device)


def _in_stream_order(loader: Batches) -> Batches:
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, RandomSampler) or getattr(loader.dataset, "drift_point", None) is None:
        return loader
    _LOG.info("the loader shuffles a data set that drifts; its messages are taken in the order of their indices")
    return DataLoader(loader.dataset, batch_size=loader.batch_size or DEFAULT_BATCH, num_workers=loader.num_workers, collate_fn=loader.collate_fn)


def _whole_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) and labels (B,) of what a loader gave: a batch, or a single item where it does no batching."""
    tokens, labels = batch[0], batch[1]
    if isinstance(tokens, Tensor) and tokens.dim() == 1:
        return tokens.unsqueeze(0), torch.as_tensor(labels).reshape(1)
    return tokens, labels
