"""A model's trainable parameters as one vector, for the optimizers inside the training functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from latent_drift.config import StabilityConfig, load
from latent_drift.models.distributed import all_reduce, is_dist_avail_and_initialized

_HALF: Final = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class FlatStep:
    """What one step found and did."""

    grad_norm: float
    """Norm before clipping; not finite where the step was skipped for its gradient."""
    skipped: bool


LARGEST_RELATIVE_STEP: Final = 0.05
"""Largest expected norm of an update as a share of the weights' norm, where the config does not say (`gradient.update_bound`).

For the default log classifier that is a learning rate of 0.008. At 0.3, a hundred times the default, its accuracy is 0.25
without this bound and 0.99 with it (test_train_raccoon.py)."""


class FlatWeights:
    """AdamW over all trainable parameters at once, in float32 or wider whatever the parameters' dtype.

    One vector makes an update five kernels instead of three hundred: for a model of small tensors the calls are the cost.
    AdamW is elementwise, so the result is that of stepping the parameters one by one. The vector also is what half-precision weights
    need: in float16 Adam's second moment of a gradient of 1e-4 is 0 and its epsilon 1e-8 is 0 too, so the first step divides 0 by
    0; in bfloat16 a step of 1e-3 of a weight is rounded away. Parameters of the vector's own dtype are views of it from here on, until `release`.

    Args:
        parameters: the model's; those that require no gradient are left alone.
        lr: learning rate; the attribute may be set before each step.
        weight_decay: of AdamW.
        config: of the numerics; the default one if None.
        scaled: whether the loss is computed under float16 autocast and so needs a scale; float16 weights always do.

    Attributes:
        loss_scale: what to multiply the loss by before `backward`: 1 where nothing is float16, in which gradients below 6e-8 vanish.

    *Numerics*: AdamW's step does not depend on the gradient's scale, so clipping does not bound it: an element moves by about the
    learning rate. The rate of a step is therefore capped where it would move the weights by more than 5 % of their norm.
    Gradients are averaged over the ranks of a process group, so that all take the same step or skip it together. The loss scale starts
    at the config's `amp.init_scale`, shrinks by its backoff after a step that overflowed, and does not grow.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, scaled: bool = False, config: StabilityConfig | None = None
    ) -> None:
        self._parameters: list[Tensor] = [p for p in parameters if p.requires_grad]
        self._layout = [(p.dtype, p.device) for p in self._parameters]
        wide = torch.float32
        for p in self._parameters:
            wide = torch.promote_types(wide, p.dtype)
        self._vector = torch.cat([p.detach().reshape(-1).to(wide) for p in self._parameters])
        parts = torch.split(self._vector.detach(), [p.numel() for p in self._parameters])
        self._views = [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]
        self._vector.requires_grad_()
        self._adamw = torch.optim.AdamW([self._vector], lr=lr, weight_decay=weight_decay, fused=self._vector.device.type in ("cpu", "cuda"))
        self._adamw_group = self._adamw.param_groups[0]
        self.lr = lr
        config = config or load()
        amp = config.amp
        self._backoff, self._smallest = amp.backoff_factor, amp.min_scale
        self.loss_scale = amp.init_scale if scaled or any(p.dtype == torch.float16 for p in self._parameters) else 1.0
        bound = config.gradient.update_bound
        self._largest_step, self._smallest_norm = (bound.max_ratio, bound.eps) if bound.kind == "ratio" else (LARGEST_RELATIVE_STEP, 1e-3)
        self._half = any(p.dtype in _HALF for p in self._parameters)
        self._places = [view.data_ptr() for view in self._views]
        self._shared = len(set(self._layout)) == 1 and self._layout[0][0] == wide
        if self._shared:
            with torch.no_grad():
                self._take_outside_changes()

    def release(self) -> None:
        """Give every parameter memory of its own again, so that a part of the model is saved without the rest."""
        for p, place in zip(self._parameters, self._places, strict=True):
            if self._shared and p.data_ptr() == place:
                p.data = p.detach().clone()

    def stands_for(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether these are still the tensors, dtypes and devices it was made for."""
        present = [p for p in parameters if p.requires_grad]
        return len(present) == len(self._parameters) and all(
            p is q and (p.dtype, p.device) == layout for p, q, layout in zip(present, self._parameters, self._layout, strict=True)
        )

    def clear_gradients(self) -> None:
        """Drop all gradients."""
        for p in self._parameters:
            p.grad = None

    def step(self, max_norm: float | None) -> FlatStep:
        """Take the gradients of a loss that was multiplied by `loss_scale`, clip their norm, and update the parameters.

        A gradient that is not finite changes nothing (and lowers the loss scale). Parameters without a gradient count as having zeros.
        """
        with torch.no_grad():
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
            gradient = _joined(gradients).to(self._vector.dtype)
            if is_dist_avail_and_initialized():
                gradient = all_reduce(gradient, op="AVG")  # what DistributedDataParallel has averaged before stays as it is
            if self.loss_scale != 1.0:
                gradient.div_(self.loss_scale)
            norm = _norm(gradient)
            if not math.isfinite(norm):
                self.loss_scale = max(self.loss_scale * self._backoff, self._smallest) if self.loss_scale > 1.0 else 1.0
                return FlatStep(norm, True)
            if max_norm is not None and norm > max_norm:
                gradient.mul_(max_norm / norm)
            self._take_outside_changes()
            self._vector.grad = gradient
            self._adamw_group["lr"] = self._bounded_lr()
            self._adamw.step()
            self._vector.grad = None
            if self._shared:
                increment_version(self._parameters)  # a graph from before the step must not go back through what it changed
            else:
                torch._foreach_copy_(self._parameters, self._views)
        return FlatStep(norm, False)

    def _bounded_lr(self) -> float:
        allowed = self._largest_step * max(torch.linalg.vector_norm(self._vector).item(), self._smallest_norm) / math.sqrt(self._vector.numel())
        # weights that are not finite already are not made better by a rate that is not
        return min(self.lr, allowed) if math.isfinite(allowed) else self.lr

    def _take_outside_changes(self) -> None:
        """Weights that somebody else changed since the last step are the truth; half ones only where they no longer round to the same."""
        if self._shared:
            for p, view, place in zip(self._parameters, self._views, self._places, strict=True):
                if p.data_ptr() != place:  # new, moved or somebody else's
                    view.copy_(p)
                    p.data = view
            return
        if not self._half:
            torch._foreach_copy_(self._views, self._parameters)
            return
        for view, p in zip(self._views, self._parameters, strict=True):
            if not torch.equal(view.to(p.dtype), p):
                view.copy_(p)

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state (one entry for the vector), the loss scale, and the vector itself where half-precision weights hold less of it."""
        state = {"adamw": self._adamw.state_dict(), "loss_scale": self.loss_scale}
        return state | {"vector": self._vector.detach().clone()} if self._half else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state of parameters with the same number of elements."""
        self._adamw.load_state_dict(state["adamw"])
        self._adamw_group = self._adamw.param_groups[0]
        self.loss_scale = float(state["loss_scale"]) if self.loss_scale != 1.0 else 1.0
        if self._half and "vector" in state:
            with torch.no_grad():
                self._vector.copy_(state["vector"])  # parts that no longer round to the weights give way at the next step


def _joined(tensors: list[Tensor]) -> Tensor:
    """All elements in order as one vector, in the widest of the tensors' dtypes."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
    joined: Tensor = torch._C._nn.flatten_dense_tensors(tensors)  # what DistributedDataParallel joins its buckets with: one call
    return joined


def _norm(gradient: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(gradient))
    if math.isfinite(norm) or not bool(torch.isfinite(gradient).all()):
        return norm
    peak = float(gradient.abs().max())  # finite, but its square is not
    return peak * float((gradient / peak).norm())
