"""float32 copies of half-precision weights, for an optimizer to step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

from latent_drift.config import StabilityConfig

_HALF: Final = (torch.float16, torch.bfloat16)


class MasterCopies:
    """The tensors an optimizer should step: float32 copies of half-precision parameters, the others themselves.

    In float16 the second moment of a gradient of 1e-4 is 0, and so is Adam's epsilon of 1e-8: its first step divides
    0 by 0. In bfloat16 a step of 1e-3 of a weight rounds away.

    Attributes:
        parameters: for the optimizer.
        scale: what the loss is multiplied by, so that float16 gradients do not vanish; 1 without float16 parameters.
            It falls by the config's backoff with each step that overflowed, and never grows.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: StabilityConfig) -> None:
        own = [p for p in parameters if p.requires_grad]
        self.parameters: list[Tensor] = [p.detach().float().requires_grad_() if p.dtype in _HALF else p for p in own]
        self._pairs = [(p, copy) for p, copy in zip(own, self.parameters, strict=True) if p is not copy]
        self._backoff, self._floor = config.amp.backoff_factor, max(1.0, config.amp.min_scale)
        self.scale = config.amp.init_scale if any(p.dtype == torch.float16 for p in own) else 1.0

    def take_gradients(self) -> None:
        """Move the gradients of half-precision parameters, divided by the scale, to their copies."""
        for parameter, copy in self._pairs:
            copy.grad = None if parameter.grad is None else parameter.grad.float().div_(self.scale)
            parameter.grad = None

    def publish(self) -> None:
        """Round the copies back into the parameters."""
        with torch.no_grad():
            for parameter, copy in self._pairs:
                parameter.copy_(copy)

    def back_off(self) -> None:
        """Lower the scale after gradients that were not finite."""
        if self.scale > 1.0:
            self.scale = max(self.scale * self._backoff, self._floor)

    def state_dict(self) -> dict[str, Any]:
        """The loss scale, and the copies, of which the half-precision parameters hold only the rounded values."""
        return {"scale": self.scale, "copies": [copy.detach().clone() for _, copy in self._pairs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state; the parameters follow."""
        self.scale = float(state["scale"])
        with torch.no_grad():
            for (_, copy), saved in zip(self._pairs, state["copies"], strict=True):
                copy.copy_(saved)
        self.publish()
