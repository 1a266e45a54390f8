"""Statistics of every layer's output, recorded by hooks, read from the device once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_FIELDS = ("elements", "mean", "std", "min", "max", "nan", "inf", "zero_fraction", "denormal_fraction", "dead_fraction", "saturated_fraction")


class ActivationMonitor(nn.Module):
    """Records, for every leaf module of a model, mean, standard deviation, range, NaN, inf, dead units and subnormal share of its last output.

    Args:
        model: if given, hooks are registered on it at once.

    Use `register_hooks(model)` and `remove_hooks()`, or as a context manager. The model is not registered as a
    child, its outputs are not changed, and nothing is read from the device until `stats` is asked for.

    *Numerics*: statistics of the finite elements in float32 (float64 for float64). Each hook is bound to its own name: a closure over the loop's
    variable would report every layer under the last one's. A unit (channel of a convolution, feature of a linear layer) is dead if its output
    was 0 for the whole batch.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    >>> with ActivationMonitor(model) as monitor:
    ...     _ = model(torch.ones(4, 2))
    >>> sorted(monitor.stats), monitor.stats["1"]["min"] >= 0, len(model[0]._forward_hooks)
    (['0', '1'], True, 0)
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self._handles: list[RemovableHandle] = []
        self._records: dict[str, tuple[Tensor, str]] = {}
        self._read: dict[str, dict[str, Any]] | None = None
        if model is not None:
            self.register_hooks(model)

    def register_hooks(self, model: nn.Module) -> ActivationMonitor:
        """Watch the leaf modules of `model` (a model without children itself). Registering again adds nothing twice. Returns itself."""
        self.remove_hooks()
        for name, module in model.named_modules():
            if not any(True for _ in module.children()) and module is not self:
                self._handles.append(module.register_forward_hook(partial(self._record, name)))
        return self

    def remove_hooks(self) -> None:
        """Take every hook off again; recorded statistics stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def reset(self) -> None:
        """Forget the recorded statistics."""
        self._records.clear()
        self._read = None

    def __enter__(self) -> ActivationMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_hooks()

    def record(self, name: str, tensor: Tensor, layer: str = "Tensor", *, scores: Tensor | None = None, unit_axis: int | None = None) -> None:
        """Record a tensor under a name of its own: what no module makes, such as the result of a functional activation.

        Args:
            name: as in `stats`.
            tensor: real floating and strided; another one is passed over.
            layer: "Sigmoid", "Tanh" and "Softmax" have their saturation measured.
            scores: what a softmax was taken of; rows with one finite score alone do not count as saturated.
            unit_axis: the axis of units; channels (1) of tensors of four dimensions and more, else the last.
        """
        if torch.compiler.is_compiling() or not tensor.is_floating_point() or tensor.layout is not torch.strided:
            return
        axis = unit_axis if unit_axis is not None else 1 if tensor.dim() > 3 else tensor.dim() - 1
        self._records[name] = (_statistics(tensor.detach(), layer, axis, None if scores is None else scores.detach()), layer)
        self._read = None

    def _record(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = next((t for t in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(t, Tensor)), None)
        if tensor is None:
            return
        scores = inputs[0] if isinstance(module, nn.Softmax) and inputs and module.dim in (-1, tensor.dim() - 1) else None
        channels = isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)) and tensor.dim() > 1
        self.record(name, tensor, type(module).__name__, scores=scores, unit_axis=1 if channels else None)

    @property
    def stats(self) -> dict[str, dict[str, Any]]:
        """name -> `mean, std, min, max, has_nan, has_inf`, and `zero_fraction`, `denormal_fraction`, `dead_fraction`, `saturated_fraction` (share of
        a sigmoid's or tanh's outputs within 1 % of its limits), `elements`, `layer` (class name). Read from the device once, then kept."""
        if self._read is None:
            rows = _to_lists([record for record, _ in self._records.values()])
            self._read = {}
            for (name, (_, layer)), row in zip(self._records.items(), rows, strict=True):
                values = dict(zip(_FIELDS, row, strict=True))
                self._read[name] = {
                    **{k: values[k] for k in ("mean", "std", "min", "max")},
                    "has_nan": values["nan"] > 0,
                    "has_inf": values["inf"] > 0,
                    **{k: values[k] for k in ("zero_fraction", "denormal_fraction", "dead_fraction", "saturated_fraction")},
                    "elements": int(values["elements"]),
                    "layer": layer,
                }
        return self._read

    def forward(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run `model(*args, **kwargs)` with hooks, and without them afterwards; returns its output."""
        self.register_hooks(model)
        try:
            return model(*args, **kwargs)
        finally:
            self.remove_hooks()


def _to_lists(rows: list[Tensor]) -> list[list[float]]:
    """All rows in one read per device."""
    if not rows:
        return []
    if len({r.device for r in rows}) == 1:
        result: list[list[float]] = torch.stack(rows).tolist()
        return result
    return [r.tolist() for r in rows]


def _statistics(x: Tensor, layer: str, axis: int, scores: Tensor | None = None) -> Tensor:
    """The numbers of `_FIELDS` as one small tensor on the output's device; a unit is an index along `axis`."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    n = max(wide.numel(), 1)
    some = wide.numel() > 0
    nothing = wide.new_zeros(())
    low, high = torch.aminmax(wide) if some else (nothing, nothing)
    if wide.device.type == "cpu" and some and bool((high - low).isfinite()):  # reading is free here, and masks are not needed
        variance, mean = torch.var_mean(wide, correction=1 if wide.numel() > 1 else 0)
        std, count, nan, inf = variance.sqrt(), nothing + n, nothing, nothing
    else:
        finite = wide.isfinite()
        count = finite.sum()
        zeros = torch.zeros_like(wide)
        mean = torch.where(finite, wide, zeros).sum() / count.clamp(min=1)
        std = (torch.where(finite, (wide - mean).square(), zeros).sum() / (count - 1).clamp(min=1)).sqrt()
        low = torch.where(finite, wide, torch.full_like(wide, torch.inf)).min() if some else mean
        high = torch.where(finite, wide, torch.full_like(wide, -torch.inf)).max() if some else mean
        nan, inf = wide.isnan().sum(), wide.isinf().sum()
    zero = x == 0
    zero_count = zero.sum()
    denormal_count = (x.abs() < torch.finfo(x.dtype).smallest_normal).sum() - zero_count
    if x.dim() > 1 and some:
        dead = zero.all(tuple(d for d in range(x.dim()) if d != axis)).float().mean()
    else:
        dead = mean.new_zeros(())
    if layer == "Sigmoid":
        saturated = ((wide < 0.01) | (wide > 0.99)).float().mean() if some else mean.new_zeros(())
    elif layer == "Tanh":
        saturated = (wide.abs() > 0.98).float().mean() if some else mean.new_zeros(())
    elif layer == "Softmax" and some and wide.dim():
        sure = (wide.amax(-1) > 0.999).float()
        if scores is not None and scores.shape == x.shape:  # a row with one score alone (a first position under a causal mask) has no choice
            choices = (scores > -torch.inf).sum(-1) > 1
            saturated = (sure * choices).sum() / choices.sum().clamp(min=1)
        else:
            saturated = sure.mean()
    else:
        saturated = mean.new_zeros(())
    numbers = (count * 0 + wide.numel(), mean, std, low, high, nan, inf, zero_count / n, denormal_count / n, dead, saturated)
    return torch.stack([v.to(torch.float32 if wide.device.type == "mps" else torch.float64) for v in numbers])
