"""A copy of what one optimizer step may change, and its exact return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


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
