"""What half precision costs a model: loss and accuracy against float32, and the layers that differ."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.stability.calling import (
    LossFunction,
    accuracy_of,
    call_model,
    default_loss,
    evaluate,
    logits_of,
    map_tensors,
    own_loss,
    required_arguments,
    split_batch,
)
from latent_drift.stability.initialization.lsuv import undisturbed


def precision_drift(
    model: nn.Module,
    batch: Any,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16),
    loss_fn: LossFunction | None = None,
    *,
    autocast: bool = False,
    threshold: float = 0.05,
) -> dict[str, Any]:
    """Run a batch in float32 and in each dtype, and compare.

    Args:
        model: any; a copy is cast, the model itself is not touched.
        batch: (inputs, labels), or what the model takes.
        dtypes: to compare with float32.
        loss_fn: (output, labels) -> scalar. Not needed if the model returns its loss; where it returns class scores or values that fit the labels,
            cross entropy or the mean squared error if there is none.
        autocast: compare under autocast instead of casting the weights.
        threshold: relative change of the loss, or loss of accuracy, that counts as a warning.

    Returns:
        `float32`: loss (None without labels) and accuracy (None without class logits and labels); and for each dtype's name:
        `loss, accuracy, loss_change` (relative), `accuracy_drop`, `layers` (rows of name and relative error of the output, worst first),
        `nonfinite_layers`, `warning` (a sentence, or "").

    *Numerics*: an autocast region around the call is left, so that float32 means float32; dropout is off, random numbers are the same in every run.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> report = precision_drift(model, (torch.randn(16, 4), torch.randint(3, (16,))), loss_fn=torch.nn.functional.cross_entropy)
    >>> report["bfloat16"]["warning"], len(report["bfloat16"]["layers"])
    ('', 3)
    """
    inputs, labels = split_batch(batch, loss_fn)

    def cast(value: Any, to: torch.dtype) -> Any:
        return map_tensors(lambda t: t.to(to) if t.is_floating_point() else t, value)

    reference = _run(copy.deepcopy(model).float(), cast(inputs, torch.float32), cast(labels, torch.float32), loss_fn, None)
    report: dict[str, Any] = {"float32": {"loss": reference["loss"], "accuracy": reference["accuracy"]}}
    for dtype in dtypes:
        inner = copy.deepcopy(model).float() if autocast else copy.deepcopy(model).to(dtype)
        stored = torch.float32 if autocast else dtype
        result = _run(inner, cast(inputs, stored), cast(labels, stored), loss_fn, dtype if autocast else None)
        report[str(dtype).removeprefix("torch.")] = _compared(reference, result, threshold)
    return report


def _run(model: nn.Module, inputs: Any, labels: Any, loss_fn: LossFunction | None, autocast: torch.dtype | None) -> dict[str, Any]:
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            outputs.setdefault(name, output.detach().float())

    device = next((p.device.type for p in model.parameters()), "cpu")
    handles = [m.register_forward_hook(partial(keep, name)) for name, m in model.named_modules() if not any(True for _ in m.children())]
    try:
        with undisturbed(model), torch.autocast(device, autocast, enabled=autocast is not None):
            torch.manual_seed(0)
            loss, output = _measured(model, inputs, labels, loss_fn)
    finally:
        for handle in handles:
            handle.remove()
    return {"loss": None if loss is None else float(loss), "accuracy": _accuracy(output, labels), "outputs": outputs}


def _measured(model: nn.Module, inputs: Any, labels: Any, loss_fn: LossFunction | None) -> tuple[Tensor | None, Any]:
    """The loss, as far as there is one, and the output: layers can be compared without any."""
    if loss_fn is not None:
        return evaluate(model, inputs, labels, loss_fn)
    takes_labels = labels is not None and not isinstance(inputs, Mapping) and required_arguments(model) >= 2
    output = (
        call_model(model, (*inputs, labels) if isinstance(inputs, (tuple, list)) else (inputs, labels)) if takes_labels else call_model(model, inputs)
    )
    loss = own_loss(output)
    return default_loss(output, labels) if loss is None and not takes_labels else loss, output


def _accuracy(output: Any, labels: Any) -> float | None:
    if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], dict):
        stats = output[1]
        if "accuracy" in stats:
            return float(stats["accuracy"])
    logits = logits_of(output, labels)
    return None if logits is None or logits.numel() == 0 else accuracy_of(logits, labels)


def _compared(reference: dict[str, Any], result: dict[str, Any], threshold: float) -> dict[str, Any]:
    rows, bad = [], []
    for name, exact in reference["outputs"].items():
        other = result["outputs"].get(name)
        if other is None or other.shape != exact.shape:
            continue
        if not bool(other.isfinite().all()):
            bad.append(name)
            rows.append({"name": name, "relative_error": math.inf})
            continue
        size = torch.linalg.vector_norm(exact).clamp(min=torch.finfo(torch.float32).tiny)
        rows.append({"name": name, "relative_error": float(torch.linalg.vector_norm(other - exact) / size)})
    rows.sort(key=lambda row: -row["relative_error"])
    measured = reference["loss"] is not None and result["loss"] is not None
    change = (result["loss"] - reference["loss"]) / max(abs(reference["loss"]), 1e-12) if measured else None
    drop = None if reference["accuracy"] is None or result["accuracy"] is None else reference["accuracy"] - result["accuracy"]
    warning = ""
    if bad:
        warning = f"{bad[0]} is not finite in this precision: keep it in float32, or scale its input"
    elif measured and not math.isfinite(result["loss"]):
        warning = "the loss is not finite in this precision: compute it in float32"
    elif drop is not None and drop > threshold:
        warning = f"accuracy drops by {drop:.3f}; the layer that differs most is {rows[0]['name']}"
    elif change is not None and abs(change) > threshold:
        warning = f"the loss changes by {change:+.1%}; the layer that differs most is {rows[0]['name']}"
    return {
        "loss": result["loss"],
        "accuracy": result["accuracy"],
        "loss_change": change,
        "accuracy_drop": drop,
        "layers": rows,
        "nonfinite_layers": bad,
        "warning": warning,
    }
