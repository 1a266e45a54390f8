"""Probabilities that rounding put beyond [0, 1], and rows without mass: binary_cross_entropy, bernoulli, multinomial (NS709).

Hazard: the run dies because a probability is 1.0000001, or because every weight of a row underflowed to 0 or one is NaN.
Repair: clamped where the excess is a few units of rounding; a row without mass, or with NaN, counts as uniform. A probability of 1.3 raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from instrument.guards.base import Spelling, spelled
from instrument.guards.raising import AbstractRaisingGuard, Attempt, argument, replaced

ROUNDING = 16
"""How many eps beyond [0, 1] count as rounding: what a softmax or a product of a few factors leaves."""


def within_rounding(x: Tensor, low: float, high: float) -> bool:
    """Whether every element is in [low, high] up to rounding (NaN is not)."""
    slack = ROUNDING * torch.finfo(x.dtype).eps
    values = x.detach()
    return bool(((values >= low - slack) & (values <= high + slack)).all())


class ProbabilityGuard(AbstractRaisingGuard):
    """Losses and samplers whose argument is a probability."""

    code: ClassVar[str] = "NS709"

    def spellings(self) -> list[Spelling]:
        return [
            *spelled("binary_cross_entropy", (functional, "binary_cross_entropy")),
            *spelled("bernoulli", (torch, "bernoulli"), (torch.Tensor, "bernoulli")),
        ]

    def culprit(self, op: str, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        x = argument(args, kwargs, 0, "input", "self")
        return x if isinstance(x, Tensor) and x.is_floating_point() and x.numel() else None

    def attempts(self, op: str, culprit: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Attempt]:
        target = argument(args, kwargs, 1, "target") if op == "binary_cross_entropy" else None
        if not within_rounding(culprit, 0.0, 1.0):
            return
        new_args, new_kwargs = replaced(args, kwargs, 0, culprit.clamp(0.0, 1.0), "input", "self")
        if isinstance(target, Tensor) and target.is_floating_point():
            if not within_rounding(target, 0.0, 1.0):
                return
            new_args, new_kwargs = replaced(new_args, new_kwargs, 1, target.clamp(0.0, 1.0), "target")
        yield new_args, new_kwargs, "the probabilities were clamped to [0, 1], which moves them by rounding only"


class MultinomialGuard(AbstractRaisingGuard):
    """Sampling in proportion to weights; `Categorical.sample` comes here too."""

    code: ClassVar[str] = "NS709"

    def spellings(self) -> list[Spelling]:
        return spelled("multinomial", (torch, "multinomial"), (torch.Tensor, "multinomial"))

    def culprit(self, op: str, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        weights = argument(args, kwargs, 0, "input", "self")
        about_weights = "multinomial distribution" in str(error) or "probability tensor" in str(error)
        return weights if about_weights and isinstance(weights, Tensor) and weights.dim() in (1, 2) and weights.numel() else None

    def attempts(self, op: str, culprit: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Attempt]:
        values = culprit.detach()
        slack = ROUNDING * torch.finfo(values.dtype).eps
        if bool((values < -slack).any()):
            return  # a weight that is really negative is a mistake, not rounding
        finite = torch.isfinite(values).all(-1, keepdim=True)
        weights = torch.where(finite, values.clamp(min=0.0), torch.ones_like(values))
        mass = weights.double().sum(-1, keepdim=True)
        weights = torch.where(mass > 0, weights, torch.ones_like(weights))
        rows = int((~(finite & (mass > 0))).sum())
        new_args, new_kwargs = replaced(args, kwargs, 0, weights, "input", "self")
        yield new_args, new_kwargs, f"{rows} rows without mass or with NaN were sampled uniformly, negative rounding was set to 0"
