"""cholesky, inverse and solve of a matrix that is singular to the dtype's precision (NS705).

Hazard: the run dies with an exception about a leading minor or a diagonal element.
Repair (`linalg.jitter: smallest`): a multiple of the identity is added, first the dtype's eps times the mean of the diagonal, then ten times
that, and so on for a few attempts; a matrix that needs more is not a matter of rounding, and the original exception is raised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.raising import AbstractRaisingGuard, Attempt, argument, replaced
from instrument.runtime import RUNTIME
from latent_drift.numerics.finite import is_finite

_NAMES = ("A", "input", "self")


class FactorizationGuard(AbstractRaisingGuard):
    """Factorisations and solves of square matrices."""

    code: ClassVar[str] = "NS705"
    errors: ClassVar[tuple[type[Exception], ...]] = (torch.linalg.LinAlgError,)  # type: ignore[attr-defined]

    def spellings(self) -> list[Spelling]:
        return [
            *spelled("cholesky", (torch.linalg, "cholesky"), (torch, "cholesky"), (torch.Tensor, "cholesky")),
            *spelled("inverse", (torch.linalg, "inv"), (torch, "inverse"), (torch.Tensor, "inverse")),
            *spelled("solve", (torch.linalg, "solve")),
        ]

    def culprit(self, op: str, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        matrix = argument(args, kwargs, 0, *_NAMES)
        return matrix if isinstance(matrix, Tensor) and matrix.dim() >= 2 and matrix.shape[-1] == matrix.shape[-2] else None

    def attempts(self, op: str, culprit: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Attempt]:
        settings = RUNTIME.run.config.linalg
        if settings.jitter == "none" or not is_finite(culprit):
            return
        values = culprit.detach()
        scale = values.diagonal(dim1=-2, dim2=-1).abs().mean(-1)
        scale = torch.where(scale > 0, scale, values.abs().amax((-2, -1)))
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))[..., None, None]
        identity = torch.eye(culprit.shape[-1], dtype=culprit.dtype, device=culprit.device)
        factor = torch.finfo(culprit.dtype).eps
        for _ in range(settings.jitter_attempts):
            new_args, new_kwargs = replaced(args, kwargs, 0, culprit + factor * scale * identity, *_NAMES)
            yield new_args, new_kwargs, f"{factor:.2g} times the mean of the diagonal was added to it"
            factor *= settings.jitter_growth
