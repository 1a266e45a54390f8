"""Mixed precision: a loss scaler that says when it skipped, autocast with the config's float32 set, a backward that looks first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latent_drift.config.active import active
from latent_drift.errors import UsageError
from latent_drift.stability.health import check_tensor_health


class DynamicLossScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler` that cannot be used twice by mistake and tells whether a step was skipped.

    Args:
        init_scale: starting scale; 2**16 by default. `DynamicLossScaler.from_config()` takes the active config's `amp` values.
        growth_factor, backoff_factor, growth_interval: as in torch.
        min_scale: floor of the scale; the config's `amp.min_scale` by default.
        device: "cuda" where available, else "cpu".

    A step: `scale_loss(loss).backward()`, `unscale_gradients(optimizer)`, clip, `step(optimizer, scheduler)`, `update()`.

    *Numerics*: gradients are divided once, however often `unscale_gradients` is called in a step (torch raises on the second call; code that
    divides by hand divides twice). A scheduler handed to `step` advances only if the optimizer did. The audited scaler never changed its
    scale and never skipped.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(1)); optimizer = torch.optim.SGD([w], lr=0.1)
    >>> scaler = DynamicLossScaler(device="cpu")
    >>> scaler.scale_loss((w * float("inf")).sum()).backward()
    >>> scaler.step(optimizer); scaler.update()
    >>> scaler.step_skipped, scaler.get_scale(), w.item()
    (True, 32768.0, 1.0)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        min_scale: float | None = None,
        device: str | None = None,
        enabled: bool = True,
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(device, init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self.min_scale = active().amp.min_scale if min_scale is None else min_scale
        self.step_skipped = False
        self.steps_skipped = 0

    @classmethod
    def from_config(cls, device: str | None = None) -> DynamicLossScaler:
        """A scaler with the active config's start, growth, backoff, interval and floor."""
        amp = active().amp
        return cls(amp.init_scale, amp.growth_factor, amp.backoff_factor, amp.growth_interval, amp.min_scale, device)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        scaled: Tensor = self.scale(loss)
        return scaled

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the optimizer's gradients by the scale, once a step: a second call does nothing."""
        if not self.is_enabled():
            return
        if self._per_optimizer_states[id(optimizer)]["stage"].value == 0:  # READY
            self.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, scheduler: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Step the optimizer, and then the scheduler, unless a gradient is not finite; `step_skipped` says which.

        Raises:
            UsageError: the optimizer has no gradient to look at (backward was not called, or was skipped).
        """
        try:
            result = super().step(optimizer, *args, **kwargs)
        except AssertionError as error:
            raise UsageError("DynamicLossScaler.step: no gradient was found; call scale_loss(loss).backward() first, or skip the step") from error
        if self.is_enabled():
            found = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
            self.step_skipped = sum(float(v.item()) for v in found.values()) > 0
            self.steps_skipped += self.step_skipped
        if scheduler is not None and not self.step_skipped:
            scheduler.step()
        return result

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Adjust the scale, not below `min_scale`."""
        super().update(new_scale)
        if self.is_enabled() and self._scale is not None:
            self._scale.clamp_(min=self.min_scale)  # on the device: nothing is read

    def state_dict(self) -> dict[str, Any]:
        """torch's state, the floor and the number of skipped steps."""
        state: dict[str, Any] = super().state_dict()
        return {**state, "min_scale": self.min_scale, "steps_skipped": self.steps_skipped} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or a plain GradScaler's state."""
        super().load_state_dict(state_dict)
        self.min_scale = state_dict.get("min_scale", self.min_scale)
        self.steps_skipped = state_dict.get("steps_skipped", 0)


class _Float32Operations(TorchFunctionMode):
    """Runs the named operations in float32 where autocast would leave them in half precision."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._names:
            args = tuple(_widen(a) for a in args)
            kwargs = {k: v if k == "out" else _widen(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


class MixedPrecisionHelper:
    """Mixed precision with the active config's values."""

    @staticmethod
    @contextmanager
    def autocast(device_type: str = "cpu", dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
        """`torch.autocast` in which the config's `amp.float32_ops` are computed in float32 on every device.

        Args:
            device_type: "cpu", "cuda", "mps".
            dtype: torch's default for the device if None.

        *Numerics*: torch's own float32 list differs by device; on the CPU layer_norm, softmax and sums stay in bfloat16.

        >>> import torch
        >>> x = torch.randn(2, 4)
        >>> with MixedPrecisionHelper.autocast("cpu", torch.bfloat16):
        ...     y = torch.softmax(x @ x.t(), -1)
        >>> y.dtype
        torch.float32
        """
        with torch.autocast(device_type, dtype, enabled=enabled):
            if enabled:
                with _Float32Operations(frozenset(active().amp.float32_ops)):
                    yield
            else:
                yield

    @staticmethod
    def prepare_for_autocast(model: nn.Module) -> nn.Module:
        """The model with float32 parameters and buffers, as autocast and GradScaler want them; in place, returned.

        Half-precision parameters under autocast cannot hold small updates, and a GradScaler refuses their gradients.
        Tied weights stay tied.

        >>> import torch
        >>> MixedPrecisionHelper.prepare_for_autocast(torch.nn.Linear(2, 2).half()).weight.dtype
        torch.float32
        """
        return model.float()

    @staticmethod
    def scaler(device: str | None = None) -> DynamicLossScaler:
        """A loss scaler with the config's start scale."""
        return DynamicLossScaler.from_config(device)

    @staticmethod
    def stable_backward(loss: Tensor, scaler: Any = None, retain_graph: bool = False) -> bool:
        """See `stable_backward`."""
        return stable_backward(loss, scaler, retain_graph)

    @staticmethod
    def check_tensor_health(tensor: Tensor, name: str = "tensor") -> dict[str, Any]:
        """See `check_tensor_health`."""
        return check_tensor_health(tensor, name)


def stable_backward(loss: Tensor, scaler: Any = None, retain_graph: bool = False) -> bool:
    """Backward, unless the loss is not finite. Returns whether it was done; if not, skip the optimizer's step (gradients are untouched).

    Args:
        loss: a scalar with a graph.
        scaler: a GradScaler whose scale is applied.
        retain_graph: as in torch.

    Raises:
        UsageError: the loss has more than one element, or no graph.

    *Numerics*: one read from the device. A loss of NaN would put NaN into every gradient.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> stable_backward((w / 0).sum()), w.grad
    (False, None)
    """
    if loss.numel() != 1:
        raise UsageError(f"stable_backward: the loss must be a scalar; got shape {tuple(loss.shape)}; reduce it first")
    if not loss.requires_grad:
        raise UsageError("stable_backward: the loss has no graph; was it computed under no_grad, or detached?")
    if not math.isfinite(loss.item()):
        return False
    (loss if scaler is None else scaler.scale(loss)).backward(retain_graph=retain_graph)
    return True
