"""A copy of what one optimizer step may change, and its exact return."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from instrument.distributed.shards import local_part
from instrument.recovery.state import state_tensors
from latent_drift.numerics.finite import is_finite
from latent_drift.numerics.gradients import global_norm


def _copied(value: Any) -> Any:
    """Tensors cloned; containers copied one level at a time with what they hold. Tensors inside lists are histories that are appended to and
    dropped, never written into (LBFGS), so the list is copied and they are not."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(value)
    return value


def _write_back(target: dict[Any, Any], saved: dict[Any, Any]) -> None:
    """Make `target` equal to `saved`; a tensor that is still there is written into, since others (a captured graph) may hold it."""
    for key in [k for k in target if k not in saved]:
        del target[key]
    for key, value in saved.items():
        current = target.get(key)
        if isinstance(value, Tensor) and isinstance(current, Tensor) and current.shape == value.shape and current.dtype is value.dtype:
            current.detach().copy_(value)
        elif isinstance(value, dict) and isinstance(current, dict):
            _write_back(current, value)
        else:
            target[key] = value


class StepSnapshot:
    """Parameters, optimizer state and group settings before a step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._targets: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters: list[Tensor] = [p.detach().clone() for p in self._targets]
        self._state = {key: _copied(value) for key, value in optimizer.state.items()}
        self._groups = [{k: _copied(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def spoilt(self) -> bool:
        """Whether a parameter or a number of the state that was finite no longer is."""
        return bool(self.spoilt_parameters() or self.spoilt_state())

    def spoilt_parameters(self) -> list[Tensor]:
        """The parameters that were finite and no longer are."""
        if math.isfinite(global_norm([local_part(p.detach()) for p in self._targets])):
            return []
        return [p for p, before in zip(self._targets, self.parameters, strict=True) if not is_finite(p) and is_finite(before)]

    def spoilt_state(self) -> list[Tensor]:
        """The tensors of the state that were finite, or not there, and are not finite now. What an optimizer of somebody else begins its state
        with is its own affair."""
        now = state_tensors(self._optimizer)
        if not now or math.isfinite(global_norm([local_part(x.detach()) for x in now])):
            return []
        known = type(self._optimizer).__module__.partition(".")[0] == "torch"
        spoilt = []
        for key, state in self._optimizer.state.items():
            before = self._state.get(key, {})
            for name, value in state.items() if isinstance(state, dict) else ():
                if isinstance(value, Tensor) and not is_finite(value):
                    earlier = before.get(name) if isinstance(before, dict) else None
                    if is_finite(earlier) if isinstance(earlier, Tensor) else known:
                        spoilt.append(value)
        return spoilt

    def growth(self) -> float:
        """The norm of all parameters now, over what it was or 1."""
        now = global_norm([local_part(p.detach()) for p in self._targets])
        return now / max(global_norm([local_part(p) for p in self.parameters]), 1.0)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back. Learning rates and other group settings that the step itself changed are put back as well."""
        for target, saved in zip(self._targets, self.parameters, strict=True):
            target.detach().copy_(saved)
        _write_back(self._optimizer.state, self._state)
        for group, saved_group in zip(self._optimizer.param_groups, self._groups, strict=True):
            params = group["params"]
            group.pop("params")
            _write_back(group, saved_group)
            group["params"] = params
