"""Where data with a hole came from: the script's variable that holds the table a bad batch was taken from, and the statement that made it bad.

Read from the running frames and their source once a step has failed; nothing is remembered for it in a healthy run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from instrument.events import Site
from instrument.locate.birthplace import as_table, birthplace, parts
from instrument.locate.made_data import is_taken_from
from instrument.locate.scene import frames
from instrument.runtime import without_function_modes
from instrument.warning_sites import Said
from latent_drift.numerics.finite import is_finite

if TYPE_CHECKING:
    from instrument.run import Run

MOST_DONE_AGAIN = 2**20
"""Elements of a table up to which what made it is done once more."""


@dataclass(frozen=True, slots=True)
class DataOrigin:
    """The variable that holds bad data, and the statement that made it so. `table` is what it holds where that is more than the bad tensor itself."""

    name: str
    site: Site
    table: Tensor | None
    warned: Said | None = None
    """What numpy said there."""


def bad_tables(x: Tensor) -> list[tuple[str, Tensor, FrameType]]:
    """The script's variables that hold the numbers of `x` among others, the largest first: tensors, arrays, and what holds one."""
    found: list[tuple[str, Tensor, FrameType]] = []
    with torch.no_grad(), without_function_modes():
        for name, table, frame in _tables():
            if table.numel() >= x.numel() and not is_finite(table) and _is_of(x, table):
                found.append((name, table, frame))
    return sorted(found, key=lambda item: -item[1].numel())


def data_origin(run: Run | None, x: Tensor, tables: Sequence[tuple[str, Tensor, FrameType]]) -> DataOrigin | None:
    """The largest variable of the script that holds the numbers of `x`, and the statement that made them bad; None where it cannot be told.

    Args:
        x: the bad tensor.
        tables: `bad_tables(x)`.
    """
    said = [] if run is None else run.search.said
    for name, table, frame in tables:
        with torch.no_grad(), without_function_modes():
            place = birthplace(name, frame, said)
        if place is not None:
            inside = run.search.made_again.look(run, place) if run is not None and table.numel() <= MOST_DONE_AGAIN else None
            site = place.site if inside is None else inside.site
            warned = next((one for one in (*said, *([] if inside is None else [inside])) if one.site == site and one.text), None)
            return DataOrigin(name, site, table if table.shape != x.shape else None, warned)
    return None


def _tables() -> Iterator[tuple[str, Tensor, FrameType]]:
    for frame in frames():
        for name, value in list(frame.f_locals.items()):
            for held in (value, *_inside(value)):
                table = None if isinstance(held, Tensor) and held.requires_grad else as_table(held)
                if table is not None:
                    yield name, table, frame


def _inside(value: Any) -> list[Any]:
    """What an object holds, and what the data set of a loader does; of a model that is quickly made once more, its buffers."""
    if isinstance(value, nn.Module):
        small = sum(p.numel() for p in value.parameters() if not isinstance(p, nn.parameter.UninitializedParameter)) <= MOST_DONE_AGAIN
        return [b for b in value.buffers() if not b.requires_grad] if small else []
    if isinstance(value, list | tuple):
        return list(value[:8])
    own = parts(value)
    data_set = getattr(value, "dataset", None)
    return (
        own
        if data_set is None
        else [*own, *parts(data_set), *(part for each in parts(data_set) if not isinstance(each, Tensor) for part in parts(each))]
    )


def _is_of(x: Tensor, table: Tensor) -> bool:
    if table.dtype is not x.dtype and table.is_floating_point() and x.is_floating_point():
        table = table.to(x.dtype)
    return table.device == x.device and is_taken_from(x, table)
