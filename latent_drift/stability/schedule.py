"""A learning rate that follows the statistics of the gradient norm."""

from __future__ import annotations

import math
from typing import Any

import torch

from latent_drift.errors import UsageError
from latent_drift.numerics.gradients import GradientHistory
from latent_drift.numerics.shards import joined_norm


class AdaptiveLR(torch.optim.lr_scheduler.LRScheduler):
    """Lowers the learning rate when gradient norms leave their usual range, and lets it return when they are back.

    Args:
        optimizer: any; its groups' learning rates are the ones returned to.
        zscore: a norm above mean + zscore * std of the recent ones (and any that is not finite) is an excursion.
        backoff: factor on the rate at each excursion.
        recovery: factor per quiet step, up to the full rate.
        min_factor: floor of the factor.
        history: steps remembered.
        warmup: steps recorded before anything happens.

    A normal LRScheduler: call `step()` after `optimizer.step()` while the gradients are still there, or `step(grad_norm)` with the norm you
    have already (clip_gradients returns it). State is saved and loaded.

    *Numerics*: NaN and inf never enter the history; excursions do not either, so that an explosion cannot make itself usual.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(1)); optimizer = torch.optim.SGD([w], lr=1.0)
    >>> scheduler = AdaptiveLR(optimizer, warmup=5)
    >>> for norm in [1.0, 1.1, 0.9, 1.0, 1.05, 50.0]: optimizer.step(); scheduler.step(norm)
    >>> scheduler.get_last_lr()
    [0.5]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        zscore: float = 3.0,
        backoff: float = 0.5,
        recovery: float = 1.02,
        min_factor: float = 1e-3,
        history: int = 200,
        warmup: int = 20,
        last_epoch: int = -1,
    ) -> None:
        if not (0 < backoff < 1 <= recovery and 0 < min_factor <= 1 and zscore > 0 and warmup >= 2):
            raise UsageError(
                "AdaptiveLR: expected 0 < backoff < 1 <= recovery, 0 < min_factor <= 1, zscore > 0 and warmup >= 2; "
                f"got backoff={backoff}, recovery={recovery}, min_factor={min_factor}, zscore={zscore}, warmup={warmup}"
            )
        self.zscore, self.backoff, self.recovery, self.min_factor, self.warmup = zscore, backoff, recovery, min_factor, warmup
        self.factor = 1.0
        self._history = GradientHistory(history)
        super().__init__(optimizer, last_epoch)

    def step(self, grad_norm: float | None = None) -> None:
        """Take in this step's gradient norm (measured from the optimizer's gradients if not given) and set the rates."""
        if self.last_epoch >= 0:
            if grad_norm is None:
                grad_norm = joined_norm([p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None])
            self._observe(float(grad_norm))
        super().step()

    def _observe(self, norm: float) -> None:
        ready = len(self._history) >= self.warmup
        norms = self._history.norms
        mean = sum(norms) / len(norms) if norms else 0.0
        # norms that hardly vary must not make every ripple an excursion: at least 10 % above the mean
        limit = max(self._history.zscore_threshold(self.zscore), 1.1 * mean) if ready else math.inf
        if not math.isfinite(norm) or norm > limit:
            self.factor = max(self.factor * self.backoff, self.min_factor)
        else:
            self._history.record(norm)
            self.factor = min(self.factor * self.recovery, 1.0)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The base rates times the factor."""
        return [base * self.factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer; only plain data."""
        state: dict[str, Any] = {key: value for key, value in self.__dict__.items() if key not in ("optimizer", "_history")}
        return {**state, "history": self._history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._history.load_state_dict(state_dict["history"])
        self.__dict__.update({key: value for key, value in state_dict.items() if key != "history"})
