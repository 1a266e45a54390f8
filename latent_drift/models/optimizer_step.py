"""One optimizer step under a stability config: scale, look, clip, step or skip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from latent_drift.config import StabilityConfig
from latent_drift.errors import GiveUpError, NumericalError
from latent_drift.models.distributed import all_reduce, is_dist_avail_and_initialized
from latent_drift.models.master_copies import MasterCopies
from latent_drift.numerics.gradients import (
    GradientHistory,
    clip_adaptively_,
    clip_by_global_norm_,
    clip_by_value_,
    global_norm,
    zero_nonfinite_,
)

UPDATE_FLOOR: Final = 0.2
"""Norm that a smaller parameter counts as, so that a bias of 128 zeros may move by 0.03 * 0.2 / sqrt(128) = 5e-4 an
entry and step."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step did. `norm` is the global gradient norm before clipping (NaN or inf where a gradient is)."""

    loss: float
    norm: float
    clipped: bool
    skipped: bool


class OptimizerStep:
    """Backward and step of a loss, as `config.gradient` says.

    A step whose loss or gradients are not finite is skipped, on all ranks alike (`nonfinite = skip`; "zero", "raise" and
    "record" do as they say); the others are clipped (`clip`) and their update bounded (`update_bound`). Half-precision
    weights are stepped through float32 copies.

    Clipping alone does not bound AdamW, whose step does not depend on the gradient's scale: at 100 times a sound
    learning rate every weight moves by its own size each step. `update_ratio` bounds the step itself.

    Args:
        model: whose parameters are trained.
        make_optimizer: called once with the list of tensors to step, returns their optimizer. Or an optimizer that
            the caller has built over the model's own parameters.
        scaler: a `torch.amp.GradScaler` for float16 autocast, or None.
        update_ratio: largest norm of a parameter's update, relative to the parameter's norm (`UPDATE_FLOOR` at least);
            None for no bound. A ratio in `config.gradient.update_bound` takes its place.

    Raises (from a call):
        GiveUpError: more than `config.gradient.max_consecutive_skips` skipped steps in a row.
        NumericalError: a non-finite gradient under `nonfinite = raise`.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: Any,
        config: StabilityConfig,
        scaler: torch.amp.GradScaler | None = None,
        update_ratio: float | None = None,
    ) -> None:
        self._model = model
        self._gradient = config.gradient
        self._scaler = scaler
        self._smallest_scale = config.amp.min_scale
        self._master: MasterCopies | None = None
        if isinstance(make_optimizer, torch.optim.Optimizer):
            self.optimizer = make_optimizer
        else:
            self._master = MasterCopies(model.parameters(), config)
            self.optimizer = make_optimizer(self._master.parameters)
        bound = config.gradient.update_bound
        self._bound = (update_ratio, UPDATE_FLOOR) if bound.kind == "none" else (bound.max_ratio, bound.eps)
        clip = config.gradient.clip
        self._history = GradientHistory(clip.history) if clip.kind in ("adaptive_percentile", "zscore") else None
        self.consecutive_skips = 0

    def __call__(self, loss: Tensor) -> StepOutcome:
        """Backward through `loss` (0-d) and step; gradients are cleared before and after."""
        self._clear()
        scale = self._master.scale if self._master is not None and self._scaler is None else 1.0
        (self._scaler.scale(loss) if self._scaler is not None else loss * scale).backward()  # type: ignore[no-untyped-call]
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        if self._master is not None:
            self._master.take_gradients()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        value, norm = float(loss.detach()), global_norm(gradients)
        finite = self._agreed(math.isfinite(value) and math.isfinite(norm))
        if not finite and self._gradient.nonfinite == "raise":
            raise NumericalError(f"the loss is {value} and the gradient norm {norm}; parameters with a bad gradient: {self._bad_names()}")
        skipped = not finite and self._gradient.nonfinite == "skip"
        clipped = False
        if not skipped:
            if not finite and self._gradient.nonfinite == "zero":
                zero_nonfinite_(gradients)
            clipped = self._clip(parameters, gradients)
            self._step(parameters, forced=not finite)
        elif self._master is not None and self._scaler is None:
            self._master.back_off()
        if self._scaler is not None:
            self._scaler.update()
            if skipped and self._scaler.get_scale() < self._smallest_scale:
                self._scaler.update(self._smallest_scale)
        self._clear()
        self.consecutive_skips = self.consecutive_skips + 1 if skipped else 0
        if self.consecutive_skips > self._gradient.max_consecutive_skips:
            raise GiveUpError(
                f"{self.consecutive_skips} steps in a row had a loss or gradient that is not finite (the last: loss {value}, norm {norm}); "
                "the weights have diverged: lower the learning rate or return to an earlier checkpoint"
            )
        return StepOutcome(value, norm, clipped, skipped)

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on beside model and optimizer, as plain data and tensors."""
        return {
            "consecutive_skips": self.consecutive_skips,
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "history": None if self._history is None else self._history.state_dict(),
            "master": None if self._master is None else self._master.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state of a step with the same settings."""
        self.consecutive_skips = state["consecutive_skips"]
        for name, holder in (("scaler", self._scaler), ("history", self._history), ("master", self._master)):
            if holder is not None and state[name] is not None:
                holder.load_state_dict(state[name])

    def _agreed(self, finite: bool) -> bool:
        """Whether all ranks are finite."""
        if not is_dist_avail_and_initialized():
            return finite
        device = next(self._model.parameters()).device
        return bool(all_reduce(torch.tensor(float(finite), device=device), op="MIN").item() > 0)

    def _clip(self, parameters: list[Tensor], gradients: list[Tensor]) -> bool:
        clip = self._gradient.clip
        if clip.kind == "norm":
            order = math.inf if clip.norm_type == "inf" else clip.norm_type
            return clip_by_global_norm_(gradients, clip.max_norm, order).clipped
        if clip.kind == "value":
            return clip_by_value_(gradients, clip.max_value).clipped
        if clip.kind == "agc":
            return clip_adaptively_(parameters, clip.clipping, clip.eps).clipped
        if clip.kind == "none" or self._history is None:
            return False
        norm = global_norm(gradients)
        limit = math.inf if clip.max_norm is None else clip.max_norm
        if len(self._history) >= clip.warmup:
            threshold = (
                self._history.percentile(clip.percentile) if clip.kind == "adaptive_percentile" else self._history.zscore_threshold(clip.threshold)
            )
            limit = min(limit, threshold)
        self._history.record(norm)
        return 0 < limit < math.inf and clip_by_global_norm_(gradients, limit, norm=norm).clipped

    def _step(self, parameters: list[Tensor], forced: bool) -> None:
        ratio, floor = self._bound
        before = [] if ratio is None else [p.detach().clone() for p in parameters]
        if self._scaler is not None and not forced:
            self._scaler.step(self.optimizer)
        else:
            self.optimizer.step()
        if ratio is not None and parameters:
            _bound_updates_(parameters, before, ratio, floor)
        if self._master is not None:
            self._master.publish()

    def _clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._model.zero_grad(set_to_none=True)

    def _bad_names(self) -> str:
        bad = [name for name, p in self._model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
        return ", ".join(bad) or "none on this rank"


@torch.no_grad()
def _bound_updates_(parameters: list[Tensor], before: list[Tensor], max_ratio: float, floor: float) -> None:
    """Shrink each parameter's update to `max_ratio` times the norm it had, taken as `floor` at least."""
    updates = torch._foreach_sub(parameters, before)
    sizes, norms = (torch.stack([n.float() for n in torch._foreach_norm(tensors)]) for tensors in (updates, before))
    factors = (max_ratio * norms.clamp_min(floor) / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)).clamp_max(1.0)
    if bool((factors < 1.0).any()):
        torch._foreach_mul_(updates, list(factors.unbind()))
        torch._foreach_add_(before, updates)
        torch._foreach_copy_(parameters, before)
