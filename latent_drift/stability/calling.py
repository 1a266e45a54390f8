"""How a model is called on a batch and where its loss is, for models that return outputs and for those that return their loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_drift.errors import UsageError

LossFunction = Callable[..., Tensor]


class Evaluation(NamedTuple):
    """A scalar loss, and what the model returned."""

    loss: Tensor
    output: Any


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with `function` applied to every tensor in it: lists, tuples (named ones too) and dicts keep their types, other mappings become dicts,
    and what is neither stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return rebuilt(value, [map_tensors(function, item) for item in value])
    return value


def rebuilt(value: Any, items: list[Any]) -> Any:
    """A list or tuple of the type of `value` (named tuples take their items one by one)."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def call_model(model: nn.Module, batch: Any) -> Any:
    """The model on a batch: a tensor as its argument, a tuple or list as its arguments, a mapping as its keywords."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def required_arguments(model: nn.Module) -> int:
    """How many positional arguments the model's forward cannot do without."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def own_loss(output: Any) -> Tensor | None:
    """The loss that a model computed itself: a scalar tensor, alone or first in a tuple, or under "loss"; None if there is none."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    elif hasattr(output, "loss"):
        output = output.loss
    return output if isinstance(output, Tensor) and output.dim() == 0 and output.is_floating_point() else None


def evaluate(model: nn.Module, inputs: Any, labels: Any = None, loss_fn: LossFunction | None = None) -> Evaluation:
    """One forward pass and its loss.

    A model that needs labels gets them. If it returns its loss (a scalar, or a tuple that begins with one), that is the loss;
    else `loss_fn(output, labels)`, or `loss_fn(output)` without labels.

    Raises:
        UsageError: there is no loss function and the model returns no loss, or the loss is no scalar.
    """
    takes_labels = labels is not None and not isinstance(inputs, Mapping) and (loss_fn is None or required_arguments(model) >= 2)
    if takes_labels:
        output = model(*inputs, labels) if isinstance(inputs, (tuple, list)) else model(inputs, labels)
    else:
        output = call_model(model, inputs)
    loss = own_loss(output)
    if loss is None or (loss_fn is not None and not takes_labels and isinstance(output, Tensor)):
        if loss_fn is None:
            raise UsageError(f"{type(model).__name__} returned {_kind(output)} and no loss_fn was given; pass loss_fn=..., or return (loss, ...)")
        loss = loss_fn(output, labels) if labels is not None else loss_fn(output)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise UsageError(f"the loss must be a tensor of one element; got {_kind(loss)}; reduce it with .mean()")
    return Evaluation(loss.reshape(()), output)


def default_loss(output: Any, labels: Any) -> Tensor | None:
    """The usual loss of a plain output: cross entropy of class scores, the mean squared error of values; None where output and labels fit neither."""
    logits = logits_of(output, labels)
    if logits is not None:
        return F.cross_entropy(logits, labels)
    if isinstance(output, Tensor) and isinstance(labels, Tensor) and output.shape == labels.shape and labels.is_floating_point():
        return F.mse_loss(output, labels)
    return None


def split_batch(batch: Any, loss_fn: LossFunction | None) -> tuple[Any, Any]:
    """(inputs, labels) of a batch as a data loader gives it: a pair, or inputs alone."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, None


def logits_of(output: Any, labels: Any) -> Tensor | None:
    """Class scores that belong to class labels, with the classes along axis 1, or None if the output holds none.

    The output may be (batch, classes, ...) as torch's cross entropy takes it, or (batch, ..., classes) as sequence models give it, alone or
    under "logits" in a mapping, or in one that follows the loss.
    """
    if isinstance(output, (tuple, list)) and len(output) > 1 and isinstance(output[1], Mapping):
        output = output[1]
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    if not isinstance(output, Tensor) or not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        return None
    if output.dim() != labels.dim() + 1 or output.dim() < 2:
        return None
    if (output.shape[0], *output.shape[2:]) != tuple(labels.shape):
        if tuple(output.shape[:-1]) != tuple(labels.shape):
            return None
        output = output.movedim(-1, 1)
    return output if output.shape[1] > 1 else None


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """The share of labels that have the largest score, those below 0 (ignored by the losses) left out; NaN without any."""
    counted = labels >= 0
    return float((logits.argmax(1) == labels)[counted].double().mean())


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(_kind(v) for v in value)}"
    return f"a {type(value).__name__}"
