"""Faults that show only in a few steps of training, tried on a copy."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.stability.calling import LossFunction, accuracy_of, evaluate, logits_of
from latent_drift.stability.diagnosis.fault import Fault

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Trial:
    """Losses of a few steps on one batch; `accuracy` on held-out rows, if any were."""

    losses: list[float]
    accuracy: float | None = None

    @property
    def finite(self) -> bool:
        """Whether every loss was."""
        return all(math.isfinite(v) for v in self.losses)

    @property
    def ending(self) -> float:
        """Mean of the last fifth."""
        tail = self.losses[-max(1, len(self.losses) // 5) :]
        return sum(tail) / len(tail)

    @property
    def drop(self) -> float:
        """Relative decrease from the first loss to the ending; negative if it grew, -inf if it is not finite."""
        if not self.finite:
            return -math.inf
        return (self.losses[0] - self.ending) / max(abs(self.losses[0]), 1e-12)


def factory_of(optimizer: torch.optim.Optimizer, factor: float = 1.0) -> OptimizerFactory:
    """Builds optimizers of the same class and settings, with the learning rate times `factor`."""
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "initial_lr")}
    accepted = inspect.signature(type(optimizer)).parameters
    allowed = {k: v for k, v in settings.items() if k in accepted}
    allowed["lr"] = float(allowed["lr"]) * factor
    return lambda parameters: type(optimizer)(parameters, **allowed)


def run_trial(
    model: nn.Module, inputs: Any, labels: Any, loss_fn: LossFunction | None, make: OptimizerFactory, steps: int, held_out: Any = None
) -> Trial:
    """Train a copy (in float32) on one batch for a few steps; random states are the caller's to keep."""
    copied = copy.deepcopy(model).float()
    parameters = [p for p in copied.parameters() if p.requires_grad]
    if not parameters:
        return Trial([math.nan])
    optimizer = make(parameters)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = evaluate(copied, inputs, labels, loss_fn).loss
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]) or not loss.requires_grad:
            break
        torch.autograd.backward(loss)
        optimizer.step()
    accuracy = None
    if held_out is not None and math.isfinite(losses[-1]):
        copied.eval()
        with torch.no_grad():
            logits = logits_of(evaluate(copied, held_out[0], held_out[1], loss_fn).output, held_out[1])
        if logits is not None:
            accuracy = accuracy_of(logits, held_out[1])
    return Trial(losses, accuracy)


def learning_rate_faults(trial: Callable[[float], Trial], lr: float) -> list[Fault]:
    """Compares the given rate with a hundredth and a hundred times it; `trial(factor)` trains a fresh copy."""
    given = trial(1.0)
    if given.drop < -0.2:
        for factor in (0.1, 0.01, 0.001):
            lower = trial(factor)
            if lower.drop > 0.01:
                end = "is not finite" if not given.finite else f"goes from {given.losses[0]:.4g} to {given.ending:.4g}"
                return [
                    Fault(
                        "learning_rate",
                        "optimizer",
                        f"at lr={lr:g} the loss {end} in {len(given.losses)} steps; at {lr * factor:g} it falls by {lower.drop:.0%}",
                        f"Too high: try {lr * factor:g}",
                    )
                ]
        return []
    if given.drop < 2e-3:
        for factor in (1e2, 1e4, 1e5, 1e6):
            higher = trial(factor)
            if higher.drop > 0.1:
                return [
                    Fault(
                        "learning_rate",
                        "optimizer",
                        f"at lr={lr:g} the loss falls by {given.drop:.2%} in {len(given.losses)} steps; at {lr * factor:g} by {higher.drop:.0%}",
                        f"Too low: try {lr * factor:g}",
                    )
                ]
    return []


def plateau_faults(trials: list[Trial], labels: Any, output: Any, layer: str) -> list[Fault]:
    """A classifier whose loss starts at log(C) and stays there whatever the rate."""
    logits = logits_of(output, labels)
    if logits is None or not trials:
        return []
    chance = math.log(logits.shape[1])
    start = trials[0].losses[0]
    best = max(trials, key=lambda t: t.drop)
    frequencies = torch.bincount(labels.reshape(-1).clamp(min=0), minlength=logits.shape[1]).double()
    share = frequencies / frequencies.sum()
    prior = float(-(share * share.clamp(min=1e-300).log()).sum())  # what the label frequencies alone allow
    stays = best.ending > min(prior, chance) * 0.98 if math.isfinite(best.ending) else False
    if abs(start - chance) < 0.1 * chance and stays and best.drop > -0.2:
        return [
            Fault(
                "plateau",
                layer,
                f"loss {start:.4g} is log({logits.shape[1]}) = {chance:.4g}, and after {len(best.losses)} steps still {best.ending:.4g}",
                "The output does not depend on the input: look for symmetric or zero weights, a detached graph, or a constant input",
            )
        ]
    return []


def held_out_split(inputs: Any, labels: Any) -> tuple[Any, Any] | None:
    """((inputs, labels) to train on, (inputs, labels) held out): three quarters and one, if there are rows enough."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or len(labels) < 32 or labels.is_floating_point():
        return None
    from latent_drift.stability.diagnosis.data import keep_rows

    n = len(labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(labels.device)
    mask = torch.zeros(n, dtype=torch.bool, device=labels.device)
    mask[order[: 3 * n // 4]] = True
    return (keep_rows(inputs, mask), labels[mask]), (keep_rows(inputs, ~mask), labels[~mask])
