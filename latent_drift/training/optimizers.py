"""Optimizers by name: every one of torch.optim and of torch-optimizer that a training step can drive."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

import torch
import torch_optimizer
from torch import nn

from latent_drift.errors import UsageError
from latent_drift.training.arguments import require_fit
from latent_drift.training.names import did_you_mean

UNSUITABLE: Final = {
    "LBFGS": "it evaluates the loss several times a step through a closure, and a step here has one loss",
    "Muon": "it takes matrices only, and these models have biases and attention weights of three axes",
    "SparseAdam": "it takes sparse gradients only, and these models have dense ones",
    "Lookahead": "it wraps another optimizer, which no key=value can name",
    "Adahessian": "it needs second derivatives, and a step here keeps no graph of its gradients",
}
"""Names that exist and cannot be used, with the reason."""

SECOND_PACKAGE: Final = "torch_optimizer."
"""Prefix that names the one of torch-optimizer where torch.optim has its namesake."""


@cache
def catalogue() -> dict[str, type[torch.optim.Optimizer]]:
    """Names and classes, torch.optim's first."""
    found: dict[str, type[torch.optim.Optimizer]] = {}
    for name in sorted(vars(torch.optim)):
        kind = getattr(torch.optim, name)
        if _is_optimizer(kind) and not name.startswith("_"):
            found[name] = kind
    for name in torch_optimizer.__all__:
        kind = getattr(torch_optimizer, name)
        if _is_optimizer(kind):
            found[SECOND_PACKAGE + name if name in found else name] = kind
    return {name: kind for name, kind in found.items() if name not in UNSUITABLE}


def _is_optimizer(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer


def canonical_name(name: str) -> str:
    """The catalogue's spelling of a name, whatever its case; `torch.optim.` and `torch_optimizer.` may stand before it.

    Raises:
        UsageError: there is no such optimizer (the nearest are named), or it cannot be used here (with the reason).
    """
    known = {entry.lower(): entry for entry in catalogue()}
    word = name.strip().lower()
    candidates = [word, word.removeprefix("torch.optim.")]
    if word.startswith(SECOND_PACKAGE):
        candidates.append(word.removeprefix(SECOND_PACKAGE))
        if candidates[-1] in known and catalogue()[known[candidates[-1]]].__module__.startswith("torch.optim"):
            candidates.pop()
    for candidate in candidates:
        if candidate in known:
            return known[candidate]
        for refused, reason in UNSUITABLE.items():
            if candidate.removeprefix(SECOND_PACKAGE) == refused.lower():
                raise UsageError(f"--optimizer {name}: {refused} cannot train here: {reason}. Take another, AdamW for example.")
    raise UsageError(
        f"--optimizer {name}: neither torch.optim nor torch-optimizer has it. {did_you_mean(name, catalogue())}\n  known: {', '.join(catalogue())}"
    )


def require_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the optimizer does not have.

    Raises:
        UsageError: naming the nearest.
    """
    require_fit(f"optimizer {name}", "--opt", catalogue()[name], arguments, supplied=("params",))


def build(name: str, arguments: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of that name over the parameters.

    Raises:
        UsageError: no such name or argument, or the optimizer refuses a value or the parameters.
    """
    name = canonical_name(name)
    require_arguments(name, arguments)
    kind = catalogue()[name]
    try:
        optimizer = kind([p for p in parameters if p.requires_grad], **arguments)
        _try(kind, arguments)
        return optimizer
    except Exception as error:  # some thirty classes of two packages, given what somebody typed
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise UsageError(
            f"--optimizer {name} with {given}: {str(error).rstrip('.') or type(error).__name__}. Change --opt, or take another optimizer."
        ) from error


def _try(kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any]) -> None:
    """Let an optimizer of these arguments take a step somewhere else: some values are refused only there."""
    with torch.random.fork_rng(devices=[]):
        weight = nn.Parameter(torch.ones(2, 3))
        weight.grad = torch.ones_like(weight)
        kind([weight], **arguments).step()


def quieten() -> None:
    """Leave out torch's notes on call forms that torch-optimizer still uses: a user of the command line can do nothing about them."""
    warnings.filterwarnings("ignore", message="This overload of", category=UserWarning)
