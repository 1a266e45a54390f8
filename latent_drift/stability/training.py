"""One training step that looks before it acts, and the loop around it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.config.active import active
from latent_drift.errors import GiveUpError
from latent_drift.numerics.gradients import clip_by_global_norm_, gradients_of
from latent_drift.numerics.shards import joined_norm
from latent_drift.stability.amp import DynamicLossScaler
from latent_drift.stability.calling import LossFunction, evaluate, map_tensors, split_batch
from latent_drift.stability.checkpoint import load_checkpoint, save_checkpoint_with_validation
from latent_drift.stability.monitor import StabilityMonitor


def stable_training_step(
    model: nn.Module,
    batch: Any,
    labels: Any,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction | None = None,
    scaler: Any = None,
    monitor: StabilityMonitor | None = None,
    max_grad_norm: float | None = 1.0,
) -> dict[str, Any]:
    """Forward, backward, unscale, clip, step; skipped whole if the loss or a gradient is not finite.

    Args:
        model: returns an output for `loss_fn`, or its loss itself (a scalar, or a tuple that begins with one); gets the labels if it needs them.
        batch: a tensor, a tuple of arguments, or a mapping of keywords.
        labels: or None.
        optimizer: stepped unless the step is skipped.
        loss_fn: (output, labels) -> scalar; None if the model returns its loss.
        scaler: a GradScaler: gradients are unscaled, once, before they are clipped.
        monitor: told the loss and, if they are finite, the gradients; it raises on NaN if it was built to.
        max_grad_norm: global norm to clip to; None does not clip.

    Returns:
        `loss` (float), `grad_norm` (before clipping; NaN if there was no backward), `grad_clipped`, `skipped`.

    Raises:
        NumericalError: the monitor was told to raise.
        UsageError: the model returns no loss and `loss_fn` is None.

    *Numerics*: parameters never become non-finite through a step: a bad loss is not propagated, a bad gradient is dropped. With a scaler the
    skip is the scaler's own, so its scale backs off. Afterwards advance a learning-rate scheduler only if `skipped` is False.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> result = stable_training_step(model, torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), optimizer, torch.nn.functional.cross_entropy)
    >>> sorted(result), result["skipped"]
    (['grad_clipped', 'grad_norm', 'loss', 'skipped'], False)
    """
    optimizer.zero_grad(set_to_none=True)
    loss = evaluate(model, batch, labels, loss_fn).loss
    value = float(loss.detach())
    if monitor is not None:
        monitor.check_loss(value)
    if not math.isfinite(value):
        if monitor is not None:
            monitor.step_update()
        return {"loss": value, "grad_norm": math.nan, "grad_clipped": False, "skipped": True}
    (loss if scaler is None else scaler.scale(loss)).backward()
    if isinstance(scaler, DynamicLossScaler):
        scaler.unscale_gradients(optimizer)
    elif scaler is not None:
        scaler.unscale_(optimizer)
    gradients = gradients_of([p for group in optimizer.param_groups for p in group["params"]])
    norm = joined_norm(gradients)
    finite = math.isfinite(norm)
    clipped = False
    if finite:
        if monitor is not None:
            monitor.log_gradient_stats(model)  # before clipping: the warning is about what came out of backward
        if max_grad_norm is not None:
            clipped = clip_by_global_norm_(gradients, max_grad_norm, norm=norm).clipped
    if scaler is not None:
        scaler.step(optimizer)  # skips by itself if a gradient is not finite
        scaler.update()
    elif finite:
        if monitor is None:
            optimizer.step()
        else:
            with monitor.watch_update(model):
                optimizer.step()
    if not finite:
        optimizer.zero_grad(set_to_none=True)
    if monitor is not None:
        monitor.step_update()
    return {"loss": value, "grad_norm": norm, "grad_clipped": clipped, "skipped": not finite}


def train_with_stability(
    model: nn.Module,
    dataloader: Iterable[Any],
    epochs: int = 10,
    optimizer: torch.optim.Optimizer | None = None,
    loss_fn: LossFunction | None = None,
    *,
    scheduler: Any = None,
    scaler: Any = None,
    monitor: StabilityMonitor | None = None,
    max_grad_norm: float | None = 1.0,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Train for a number of epochs, each step guarded; write a checkpoint after each epoch and go on from it.

    Args:
        model: as for `stable_training_step`.
        dataloader: gives (inputs, labels), or what the model takes.
        epochs: in all, those of an earlier run included.
        optimizer: AdamW with learning rate 1e-3 by default.
        loss_fn: cross entropy by default, if the model does not return its loss.
        scheduler: advanced after every step that was not skipped; a ReduceLROnPlateau once an epoch, with the mean loss.
        scaler: for float16.
        monitor: one that does not raise by default.
        max_grad_norm: global norm to clip to.
        checkpoint: a file; written after each epoch, atomically, and read first if it is there and `resume` holds.
        resume: whether to go on from `checkpoint`.
        device: where batches are moved; the model's own by default.

    Returns:
        `epochs` (a row per epoch of this call: epoch, loss, grad_norm, clipped, skipped, steps), `summary` (the monitor's), `start_epoch`, `monitor`.

    Raises:
        GiveUpError: `gradient.max_consecutive_skips` of the config were skipped in a row.

    *Numerics*: a run that was stopped after an epoch and resumed gives bit for bit the parameters of one that was not: random states are part of the
    checkpoint (of torch, Python and, where loaded, the DataLoader's order, which torch's random state decides).

    >>> import torch
    >>> data = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
    >>> result = train_with_stability(torch.nn.Linear(3, 2), data, epochs=2)
    >>> [row["steps"] for row in result["epochs"]], result["summary"]["total_steps"]
    ([4, 4], 8)
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3) if optimizer is None else optimizer
    monitor = StabilityMonitor(raise_on_nan=False) if monitor is None else monitor
    target = torch.device(device) if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    patience = active().gradient.max_consecutive_skips
    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    start = 0
    if checkpoint is not None and resume and Path(checkpoint).exists():
        content = load_checkpoint(checkpoint, model, optimizer, scheduler, scaler, map_location=target)
        start = int(content["epoch"])
        monitor.load_state_dict(content["monitor"])
        _set_random_state(content["random"])
    rows: list[dict[str, Any]] = []
    in_a_row = 0
    for epoch in range(start, epochs):
        model.train()
        losses, norms, clipped, skipped, steps = 0.0, 0.0, 0, 0, 0
        for item in dataloader:
            inputs, labels = split_batch(map_tensors(lambda t: t.to(target), item), loss_fn)
            result = stable_training_step(model, inputs, labels, optimizer, loss_fn or _default_loss, scaler, monitor, max_grad_norm)
            steps += 1
            if result["skipped"]:
                skipped, in_a_row = skipped + 1, in_a_row + 1
                if in_a_row >= patience:
                    raise GiveUpError(
                        f"{in_a_row} steps in a row were skipped: the model or its data is broken; run latent_drift.stability.diagnose on a batch"
                    )
                continue
            in_a_row = 0
            losses, norms, clipped = losses + result["loss"], norms + result["grad_norm"], clipped + result["grad_clipped"]
            if scheduler is not None and not plateau:
                scheduler.step()
        good = max(steps - skipped, 1)
        row = {"epoch": epoch, "loss": losses / good, "grad_norm": norms / good, "clipped": clipped, "skipped": skipped, "steps": steps}
        rows.append(row)
        if plateau and steps > skipped:
            scheduler.step(row["loss"])
        if checkpoint is not None:
            save_checkpoint_with_validation(
                model, checkpoint, optimizer, scheduler, scaler, epoch=epoch + 1, monitor=monitor.state_dict(), random=_random_state()
            )
    return {"epochs": rows, "summary": monitor.summary(), "start_epoch": start, "monitor": monitor}


def _default_loss(output: Any, labels: Any = None) -> Tensor:
    if isinstance(labels, Tensor) and labels.is_floating_point():
        return F.mse_loss(output, labels)
    return F.cross_entropy(output, labels)


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    state = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
