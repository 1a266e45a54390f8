"""Parameters of torch.distributions that underflowed or that rounding put outside their domain (NS709).

Hazard: a scale that underflowed to 0, probabilities that sum to 1 + 2e-6 or a row whose mass underflowed raise when the distribution is built.
Repair: a 0 where something positive is asked becomes the dtype's smallest normal number; probabilities are clamped, or divided by their sum,
where that moves them by rounding only; a row that is NaN because it had no mass counts as uniform; a covariance gets the smallest jitter.
A negative scale or a probability of 1.3 raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from instrument.guards.base import AbstractGuard, Function, Spelling, is_compiling, mimic
from instrument.guards.expected_error import is_expected
from instrument.guards.probability import within_rounding
from instrument.runtime import RUNTIME, is_plain, without_function_modes
from instrument.tensors import is_bad
from latent_drift.numerics.finite import is_finite


class DistributionGuard(AbstractGuard):
    """The validation that every distribution passes through when it is built."""

    code: ClassVar[str] = "NS709"

    def spellings(self) -> list[Spelling]:
        return [Spelling(Distribution, "__init__", "distribution")]

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        @mimic(original, spelling)
        def guarded(distribution: Distribution, *args: Any, **kwargs: Any) -> Any:
            if is_compiling() or not RUNTIME.active:
                return original(distribution, *args, **kwargs)
            try:
                return original(distribution, *args, **kwargs)
            except ValueError as error:
                run = RUNTIME.run
                if is_expected(error):
                    raise
                with without_function_modes():
                    changes = list(_repairs(distribution))
                    bad = [value for value in vars(distribution).values() if isinstance(value, Tensor) and is_bad(value)]
                    if bad:
                        run.search.blame_inputs(bad)
                    if not changes:
                        raise
                    acts = run.config.act and run.config.repair_raising
                    name = type(distribution).__name__
                    for parameter, before, after, change in changes:
                        if acts:
                            _replace(distribution, parameter, before, after)
                        said = f"{change}" if acts else "it raised"
                        run.note(self.code, "repaired" if acts else "observed", name, x=before, message=f"{parameter} of {name}: {said}", fired=acts)
                    if not acts:
                        raise
                    return original(distribution, *args, **kwargs)

        return guarded


def _replace(distribution: Distribution, parameter: str, before: Tensor, after: Tensor) -> None:
    """Put the repaired parameter wherever the distribution keeps it (Categorical keeps it under a second name)."""
    for key, value in list(vars(distribution).items()):
        if value is before:
            distribution.__dict__[key] = after
    distribution.__dict__[parameter] = after


def _repairs(distribution: Distribution) -> Iterator[tuple[str, Tensor, Tensor, str]]:
    """(name, value, repaired value, what changed) of each invalid parameter that a small repair makes valid."""
    for parameter, constraint in distribution.arg_constraints.items():
        value = vars(distribution).get(parameter)
        if constraints.is_dependent(constraint) or not isinstance(value, Tensor) or not is_plain(value) or not value.numel():
            continue
        if bool(constraint.check(value).all()):
            continue
        repaired = _repaired(constraint, value)
        if repaired is not None and bool(constraint.check(repaired[0].detach()).all()):
            yield parameter, value, *repaired


def _repaired(constraint: Any, value: Tensor) -> tuple[Tensor, str] | None:
    base = getattr(constraint, "base_constraint", constraint)
    lower = getattr(base, "lower_bound", None)
    upper = getattr(base, "upper_bound", None)
    tiny = torch.finfo(value.dtype).tiny
    if lower == 0.0 and upper is None and bool((value.detach() >= 0).all()):
        return torch.where(value > 0, value, value.new_full((), tiny)), "values that underflowed to 0 became the smallest normal number"
    if lower == 0.0 and upper == 1.0 and within_rounding(value, 0.0, 1.0):
        return value.clamp(0.0, 1.0), "probabilities were clamped to [0, 1], which moves them by rounding only"
    if constraint is constraints.simplex:
        return _repaired_simplex(value)
    if constraint is constraints.positive_definite and is_finite(value):
        scale = value.detach().diagonal(dim1=-2, dim2=-1).abs().mean(-1)[..., None, None]
        identity = torch.eye(value.shape[-1], dtype=value.dtype)
        config = RUNTIME.run.config
        settings = config.linalg
        factor = torch.finfo(value.dtype).eps
        # Where nothing is repaired, what would have helped still tells that the failure is a numerical one.
        for _ in range(0 if settings.jitter == "none" and config.repair_raising else settings.jitter_attempts):
            candidate = value + factor * scale * identity
            if bool(constraint.check(candidate.detach()).all()):
                return candidate, f"{factor:.2g} times the mean of the diagonal was added to it"
            factor *= settings.jitter_growth
    return None


def _repaired_simplex(value: Tensor) -> tuple[Tensor, str] | None:
    empty = torch.isnan(value.detach()).all(-1, keepdim=True)
    filled = torch.where(empty, torch.full_like(value, 1.0 / value.shape[-1]), value)
    if not within_rounding(filled, 0.0, 1.0):
        return None
    clamped = filled.clamp(min=0.0)
    total = clamped.sum(-1, keepdim=True)
    if not bool(((total.detach() - 1.0).abs() < 1e-3).all()):
        return None
    return clamped / total, "rows without mass became uniform and rounding was divided out"
