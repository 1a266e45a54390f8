"""Activations that no module makes: `F.relu(x)`, `x.sigmoid()`, `torch.softmax(scores, -1)` in a model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from latent_drift.stability.activations import ActivationMonitor

# Name of the function -> the module that does the same, under whose name the statistics go.
_LAYERS = {
    "relu": "ReLU",
    "relu_": "ReLU",
    "relu6": "ReLU6",
    "sigmoid": "Sigmoid",
    "sigmoid_": "Sigmoid",
    "tanh": "Tanh",
    "tanh_": "Tanh",
    "softmax": "Softmax",
}


class FunctionalActivations(TorchFunctionMode):
    """Inside its block, functional activations of `model` are recorded by `monitor`, as "layer.function", after the layer that ran last.

    A module that is such an activation itself (`nn.ReLU`) is left to the monitor's own hook.
    """

    def __init__(self, model: nn.Module, monitor: ActivationMonitor) -> None:
        super().__init__()
        self._model, self._monitor = model, monitor
        self._handles: list[RemovableHandle] = []
        self._running: list[tuple[str, nn.Module]] = []
        self._last: tuple[str, nn.Module | None] = ("", None)

    def __enter__(self) -> FunctionalActivations:
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(partial(self._begin, name)))
            self._handles.append(module.register_forward_hook(partial(self._end, name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, name: str, module: nn.Module, inputs: Any) -> None:
        self._running.append((name, module))

    def _end(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        if any(True for _ in module.parameters(recurse=False)):
            self._last = (name, module)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        layer = _LAYERS.get(getattr(func, "__name__", ""))
        # what an in-place function is given is gone afterwards
        scores = args[0] if layer == "Softmax" and args and isinstance(args[0], Tensor) else None
        result = func(*args, **(kwargs or {}))
        if layer is None or not self._running or not isinstance(result, Tensor):
            return result
        name, module = self._running[-1]
        leaf = not any(True for _ in module.children())
        if leaf and not any(True for _ in module.parameters(recurse=False)):
            if type(module).__name__ != layer:
                self._monitor.record(f"{name}.{func.__name__}", result, layer, scores=scores)
            return result
        owner, before = (name, module) if leaf else self._last
        channels = isinstance(before, _ConvNd) and result.dim() > 1
        self._monitor.record(f"{owner or name}.{func.__name__}".lstrip("."), result, layer, scores=scores, unit_axis=1 if channels else None)
        return result
