"""Which elements of an argument a reduced result was made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from instrument.guards.result import Call


def reduced_dims(call: Call, x: Tensor, position: int = 1) -> tuple[int, ...] | None:
    """The dimensions that a reduction took out or kept at size 1; None where it took all, or where the call does not say it in numbers."""
    dim = call.kwargs.get("dim", call.kwargs.get("axis", call.args[position] if len(call.args) > position else None))
    if type(dim) is int:
        return (dim % max(x.dim(), 1),)
    if isinstance(dim, tuple | list) and dim and all(type(d) is int for d in dim):
        return tuple(sorted(d % max(x.dim(), 1) for d in dim))
    return None


def elements_of_rows(rows: Tensor, x: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """The elements of `x` behind the elements of a reduced result that are set in `rows` (bool). All of them, if the shapes do not tell."""
    if dims is not None and rows.dim() != x.dim():
        for dim in dims:
            if dim > rows.dim():
                break
            rows = rows.unsqueeze(dim)
    told = rows.dim() in (0, x.dim()) and all(r in (1, n) for r, n in zip(rows.shape, x.shape, strict=False))
    return rows.expand_as(x) if told else torch.ones_like(x, dtype=torch.bool) & rows.any()


def first_tensor(call: Call, name: str = "input") -> Any:
    """The argument that is reduced."""
    return call.argument(0, name)
