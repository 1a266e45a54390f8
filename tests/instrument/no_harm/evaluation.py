"""One call, evaluated: its outputs, its gradients and theirs, or how it failed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.instrument.no_harm.bits import difference, is_finite, tensors


@dataclass
class Outcome:
    """What a call gave, level by level: outputs, gradients, gradients of those. `error` is what stopped it, with the level it was at."""

    levels: list[Any] = field(default_factory=list)
    error: tuple[str, str] | None = None

    @property
    def finite_levels(self) -> int:
        """How many levels, from the outputs on, hold finite numbers only."""
        count = 0
        for level in self.levels:
            if not is_finite(level):
                break
            count += 1
        return count


def seed() -> None:
    """The same random numbers for every evaluation."""
    torch.default_generator.manual_seed(20)  # torch.manual_seed also notes, with a formatted stack, what absent devices are to do
    random.seed(20)
    np.random.seed(20)


def copied(nest: Any) -> Any:
    """Leaves of the same values, layout and requires_grad, so that what one call writes the next does not see."""

    def copy(x: Any) -> Any:
        if not isinstance(x, Tensor) or type(x) not in (Tensor, torch.nn.Parameter):
            return x
        twin = x.detach().clone()
        if x.is_conj() and not twin.is_conj():
            twin = twin.conj().resolve_conj().conj()
        return twin.requires_grad_(x.requires_grad)

    return pytree.tree_map(copy, nest)


def _message(error: Exception) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _cotangents(outputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(21)
    return [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in outputs]


def evaluate(call: Callable[..., Any], args: Any, *, order: int) -> Outcome:
    """`call(copy of args)`, then `order` times the gradients of what came out with respect to what went in.

    `call` takes the nest of arguments as one; random numbers are the same in each evaluation.
    """
    outcome = Outcome()
    args = copied(args)
    sources = [x for x in tensors(args) if x.requires_grad]
    seed()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = call(args)
            outcome.levels.append(out)
            for level in range(order):
                outputs = [x for x in tensors(out) if x.requires_grad and x.layout is torch.strided and not x.is_nested]
                if not outputs or not sources:
                    break
                out = torch.autograd.grad(outputs, sources, _cotangents(outputs), create_graph=level + 1 < order, allow_unused=True)
                outcome.levels.append(out)
    except Exception as error:  # how it fails is part of the comparison
        outcome.error = _message(error)
    return outcome


def disagreement(plain: Outcome, guarded: Outcome, *, strict: bool) -> str | None:
    """What differs, or None.

    Levels are compared up to the first that is not finite (a guard may act from there on), or all of them where `strict`.
    """
    compared = len(plain.levels) if strict else plain.finite_levels
    for index in range(compared):
        if index >= len(guarded.levels):
            return f"{('outputs', 'gradients', 'second gradients')[index]}: {guarded.error} instead of values"
        found = difference(plain.levels[index], guarded.levels[index])
        if found is not None:
            return f"{('outputs', 'gradients', 'second gradients')[index]}: {found}"
    if compared == len(plain.levels) and plain.error != guarded.error:
        return f"error {guarded.error} instead of {plain.error}"
    return None
