"""What turns a loss of the log classifier into a step: AdamW on one vector, any optimizer, or what was published."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Final

import torch
from torch import Tensor, nn

from latent_drift.config import StabilityConfig
from latent_drift.errors import GiveUpError
from latent_drift.models.flat_weights import LARGEST_RELATIVE_STEP, FlatStep, FlatWeights
from latent_drift.models.optimizer_step import OptimizerStep

WEIGHT_DECAY: Final = 1e-5
WARMUP: Final = 0.05  # share of the steps over which the rate rises; Adam's second moments know nothing yet


def warmed_cosine(step: int, steps: int) -> float:
    """The share of the peak rate at `step` of `steps`: up a line over the first twentieth, then down a half cosine to 0."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


class AbstractSteps(ABC):
    """Called with each loss."""

    @abstractmethod
    def __call__(self, loss: Tensor) -> FlatStep:
        """Backward and step, gradients being cleared before or after."""

    def finish(self) -> None:  # noqa: B027 (most have nothing to undo)
        """After the last step."""


class FlatSteps(AbstractSteps):
    """AdamW on all weights as one vector, warmed up and decayed: the default."""

    def __init__(self, model: nn.Module, lr: float, steps: int, config: StabilityConfig, scaled: bool) -> None:
        clip = config.gradient.clip
        self.max_norm = clip.max_norm if clip.kind == "norm" else None
        self.most_skips = config.gradient.max_consecutive_skips
        self.lr, self.steps = lr, steps
        self.weights = FlatWeights(model.parameters(), lr, WEIGHT_DECAY, scaled=scaled, config=config)
        self.weights.clear_gradients()
        self.taken = self.skipped_in_a_row = 0

    @staticmethod
    def serves(config: StabilityConfig) -> bool:
        """Whether what the config asks of gradients is what one vector can do."""
        clip = config.gradient.clip
        return config.gradient.nonfinite == "skip" and (clip.kind == "none" or (clip.kind == "norm" and clip.norm_type == 2.0))

    def __call__(self, loss: Tensor) -> FlatStep:
        """Backward, clip, bound, step or skip; gradients are cleared afterwards."""
        scale = self.weights.loss_scale
        (loss if scale == 1.0 else loss * scale).backward()  # type: ignore[no-untyped-call]
        self.weights.lr = self.lr * warmed_cosine(self.taken, self.steps)
        outcome = self.weights.step(self.max_norm)
        self.weights.clear_gradients()
        self.taken += 1
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if outcome.skipped else 0
        if self.skipped_in_a_row > self.most_skips:
            raise GiveUpError(
                f"{self.skipped_in_a_row} steps in a row had a gradient that is not finite "
                f"(the last: loss {float(loss.detach())}, norm {outcome.grad_norm}); "
                "look for weights that are not finite, or return to an earlier checkpoint"
            )
        return outcome

    def finish(self) -> None:
        """The parameters get memory of their own again."""
        self.weights.release()


class OptimizerSteps(AbstractSteps):
    """Any optimizer and all that a config can ask for."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        steps: int,
        config: StabilityConfig,
        optimizer: torch.optim.Optimizer | None,
        scheduler: Any,
        scaler_for: torch.device | None,
    ) -> None:
        amp = config.amp
        scaler = None
        if scaler_for is not None:
            scaler = torch.amp.GradScaler(
                scaler_for.type,
                init_scale=amp.init_scale,
                growth_factor=amp.growth_factor,
                backoff_factor=amp.backoff_factor,
                growth_interval=amp.growth_interval,
            )
        make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY))
        self._step = OptimizerStep(model, make, config, scaler, update_ratio=LARGEST_RELATIVE_STEP)
        self._scheduler = scheduler
        if optimizer is None:
            self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._step.optimizer, lambda step: warmed_cosine(step, steps))

    def __call__(self, loss: Tensor) -> FlatStep:
        """Backward, then what the config says; the scheduler moves where the optimizer did."""
        outcome = self._step(loss)
        if self._scheduler is not None and not outcome.skipped:
            self._scheduler.step()
        return FlatStep(outcome.norm, outcome.skipped)


class LegacySteps(AbstractSteps):
    """The published step: AdamW at a constant rate, whatever the gradient."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)

    def __call__(self, loss: Tensor) -> FlatStep:
        """Backward and step."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return FlatStep(math.nan, False)
