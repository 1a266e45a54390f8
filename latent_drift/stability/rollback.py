"""Returning to the last good state."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.config.active import active
from latent_drift.errors import GiveUpError
from latent_drift.numerics.snapshot import HasState, Snapshot


class RollbackGuard:
    """Keeps an exact copy of the training state and returns to it when the run goes bad.

    Args:
        model: a module or several.
        optimizer: an optimizer or several.
        scheduler, scaler: anything with a state, or None.
        every: good steps between copies; the config's `recovery.snapshot_every`.
        after: bad steps in a row that cause a rollback; the config's `recovery.rollback_after`.
        retries: rollbacks to the same copy before giving up; the config's `recovery.retries`.
        lr_backoff: factor on every learning rate at each rollback; the config's `recovery.lr_backoff`; 1 leaves them.
        device: "device" or "host"; the config's `recovery.snapshot_device`.

    Call `check(loss)` once a step, after `optimizer.step()`. Parameters, buffers, optimizer state, schedule, scale and random states
    return bit for bit, each value into the tensor it came from: tied weights stay tied, and who holds a state tensor (a CUDA graph, a fused
    kernel) sees it restored.

    Attributes:
        rollbacks: how many there were.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> guard = RollbackGuard(model, optimizer, after=1)
    >>> good = model.weight.detach().clone()
    >>> with torch.no_grad(): _ = model.weight.fill_(float("nan"))
    >>> guard.check(torch.tensor(float("nan"))), torch.equal(model.weight, good), optimizer.param_groups[0]["lr"]
    (False, True, 0.05)
    """

    def __init__(
        self,
        model: nn.Module | list[nn.Module],
        optimizer: torch.optim.Optimizer | list[torch.optim.Optimizer],
        scheduler: HasState | None = None,
        scaler: HasState | None = None,
        *,
        every: int | None = None,
        after: int | None = None,
        retries: int | None = None,
        lr_backoff: float | None = None,
        device: str | None = None,
    ) -> None:
        recovery = active().recovery
        self.every = recovery.snapshot_every if every is None else every
        self.after = recovery.rollback_after if after is None else after
        self.retries = recovery.retries if retries is None else retries
        self.lr_backoff = recovery.lr_backoff if lr_backoff is None else lr_backoff
        self._modules = [model] if isinstance(model, nn.Module) else list(model)
        self._optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        self._scheduler = scheduler
        others = [x for x in (scheduler, scaler) if x is not None]
        storage: Any = device or recovery.snapshot_device
        self.snapshot = Snapshot(self._modules, self._optimizers, others, storage=storage)
        self.rollbacks = 0
        self._good, self._bad, self._tries = 0, 0, 0

    def check(self, loss: Tensor | float | None = None) -> bool:
        """Whether this step was good: the loss (if given) and every parameter finite. A bad one counts towards a rollback, which then happens here.

        Raises:
            GiveUpError: the same copy was returned to `retries` times and the run went bad again.
        """
        if self._is_good(loss):
            self._bad = 0
            self._good += 1
            if self._good % self.every == 0:
                self.take()
            return True
        self._bad += 1
        if self._bad >= self.after:
            self.rollback()
        return False

    def take(self) -> None:
        """Make this the state to return to."""
        self.snapshot.refresh()
        self._tries = 0

    def rollback(self) -> None:
        """Return to the last copy now, and lower the learning rates.

        Raises:
            GiveUpError: as `check`.
        """
        if self._tries >= self.retries:
            raise GiveUpError(
                f"the run went bad again after {self._tries} returns to the same state; lower the learning rate, or look for the cause with diagnose"
            )
        self.snapshot.restore()
        self._tries += 1
        self.rollbacks += 1
        self._bad = 0
        self._good = 0
        # Each return lowers the rates once more than the last: the copy holds the ones from before any of them.
        factor = self.lr_backoff**self._tries
        if factor != 1.0:
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    if isinstance(group["lr"], Tensor):
                        group["lr"].mul_(factor)
                    else:
                        group["lr"] *= factor
            if self._scheduler is not None and hasattr(self._scheduler, "base_lrs"):
                self._scheduler.base_lrs = [lr * factor for lr in self._scheduler.base_lrs]

    def _is_good(self, loss: Tensor | float | None) -> bool:
        if loss is not None and not math.isfinite(float(loss.detach()) if isinstance(loss, Tensor) else loss):
            return False
        tensors = [p.detach() for m in self._modules for p in m.parameters() if p.is_floating_point() and p.numel()]
        if not tensors:
            return True
        # a sum of zeros is finite exactly if every norm is; one read
        flags = torch.stack([(t * 0).sum().float().to(tensors[0].device) for t in tensors])
        return bool(flags.sum().isfinite())
