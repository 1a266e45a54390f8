"""A fill constant that the dtype cannot hold: masked_fill(mask, -1e9) in float16 (NS402).

Hazard: torch raises that the value cannot be converted without overflow, in the middle of an attention that worked in float32.
Repair: the dtype's own largest finite number of that sign. A deliberate infinity is a value that every dtype holds, and stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.raising import AbstractRaisingGuard, Attempt, argument, replaced
from instrument.runtime import is_plain
from latent_drift.numerics.limits import FLOAT_DTYPES

# Operation -> position of the value, and its name. The tensor that is filled stands first; full has its size there.
_VALUE_AT = {
    "full": (1, "fill_value"),
    "masked_fill": (2, "value"),
    "fill": (1, "value"),
    "full_like": (1, "fill_value"),
    "new_full": (2, "fill_value"),
    "index_fill": (3, "value"),
}


class FillValueGuard(AbstractRaisingGuard):
    """Filling with a Python number."""

    code: ClassVar[str] = "NS402"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in _VALUE_AT:
            found += spelled(op, (torch, op), (torch.Tensor, op), (torch.Tensor, op + "_"))
        return found

    def culprit(self, op: str, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        if "without overflow" not in str(error):
            return None
        x = _made(args, kwargs) if op == "full" else argument(args, kwargs, 0, "input", "self")
        return x if isinstance(x, Tensor) else None

    def attempts(self, op: str, culprit: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Attempt]:
        position, name = _VALUE_AT[op]
        value = argument(args, kwargs, position, name)
        dtype = kwargs.get("dtype") or culprit.dtype
        if is_plain(value) and value.dim() == 0 and not value.requires_grad:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or dtype not in FLOAT_DTYPES:
            return
        largest = math.copysign(torch.finfo(dtype).max, value)
        new_args, new_kwargs = replaced(args, kwargs, position, largest, name)
        yield new_args, new_kwargs, f"{value:g} became {largest:g}, the most that {str(dtype).removeprefix('torch.')} holds"


def _made(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What `torch.full` was to make, without its memory."""
    given = kwargs.get("out")
    if given is not None:
        return given if isinstance(given, Tensor) else None
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return torch.zeros((), dtype=dtype).expand(tuple(argument(args, kwargs, 0, "size")))
