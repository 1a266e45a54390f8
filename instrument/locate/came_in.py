"""A bad tensor that no operation of the graph made of others: what it is, and where it came in.

A parameter or a buffer that a checkpoint brought, data that an operation of the script made bad before (`MadeData`), or data that was bad already:
then the statement that gave the script's variable its value is looked up, since the line that first uses a table seldom tells who read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from instrument.events import Site
from instrument.guards.loading import loaded_at, loaded_buffer
from instrument.guards.parameter_names import parameter_names
from instrument.locate.births import Birth
from instrument.locate.data_origin import DataOrigin, bad_tables, data_origin
from instrument.locate.origin import kinds, running_modules, spread, undetached, variable_name
from instrument.locate.own_state import update_of_state
from instrument.tensors import is_bad

if TYPE_CHECKING:
    from instrument.run import Run


@dataclass(frozen=True, slots=True)
class CameIn:
    """What is known of it. `site` is where it came in, None where that is the line that uses it."""

    code: str
    message: str
    site: Site | None = None
    op: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    weak: bool = False
    """Infinities that come in as data may be a mask."""
    made_at: Site | None = None
    """The statement that had made it bad, where `site` or the line that uses it is another one."""
    is_carried: bool = False
    """The script computes it from what it was, step after step: it stays bad."""


def _is_parameter(x: Tensor) -> bool:
    return isinstance(x, nn.Parameter) or (x.is_leaf and x.requires_grad)


def still_graphed(run: Run | None, x: Tensor) -> Tensor | None:
    """`x`, or a variable that holds its very numbers, if the graph that made them is alive: that knows more than that they came in. None for a
    parameter, and for data of which it is known what made it bad."""
    if _is_parameter(x) or (run is not None and run.search.made.origin_of(x) is not None):
        return None
    return x if x.grad_fn is not None else undetached(x)


def came_in(run: Run | None, x: Tensor) -> CameIn:
    """Tell what this bad tensor is."""
    shape = tuple(x.shape)
    if _is_parameter(x):
        site = loaded_at(x)
        loaded = "" if site is None else ", as it was loaded"
        weak = site is None and is_masked_only(x.detach())  # transitions that a model forbids
        return CameIn("NS804", f"the parameter {parameter_names([x])[0]} of shape {shape} holds {kinds(x)} {spread(x)}{loaded}", site, weak=weak)
    weak = not bool(torch.isnan(x.detach()).any())
    made = None if run is None else run.search.made.origin_of(x) or _kept_in_a_buffer(run, x)
    if made is not None:
        return CameIn(made.code, made.message, made.site, made.op, made.facts, made.weak)
    buffer = loaded_buffer(x)
    if buffer is not None:
        name, site = buffer
        return CameIn("NS804", f"the buffer {name} of shape {shape} holds {kinds(x)} {spread(x)}, as it was loaded", site, weak=weak)
    if run is not None:
        in_worker = run.search.worker_births.origin_of(x)
        if in_worker is not None:
            return CameIn(in_worker.code, in_worker.message, in_worker.site, in_worker.op)
    state = None if is_masked_only(x.detach()) else update_of_state(x)
    if state is not None:
        name, site = state
        message = f"{name} of shape {shape}, which is computed from what it was at each step, holds {kinds(x)} {spread(x)}"
        return CameIn("NS803" if bool(torch.isnan(x.detach()).any()) else "NS806", message, made_at=site, is_carried=True)
    tables = bad_tables(x)
    held = (x, *(table for _, table, _ in tables))
    made = None if run is None else next((birth for table in held if (birth := run.search.made.origin_within(table)) is not None), None)
    if made is not None:
        return CameIn(made.code, made.message, made.site, made.op, made.facts, made.weak)
    label = variable_name(x)
    what = "data" if label is None else f"the data {label}"
    said = [] if run is None else run.search.said
    origin = data_origin(run, x, tables)
    message = f"{what} of shape {shape} holds {kinds(x)} {spread(x)} before any operation{_made_by(origin)}"
    warned = origin.warned if origin is not None else None
    if origin is None and said and not tables:
        warned = said[0]  # no variable holds the table any more, or it never had one: an item of a data set
        message += f"; numpy warned at {warned.site}"
    elif origin is None and run is not None and (run.search.blamed or run.tally.steps + run.backward_calls):
        warned = run.search.made_again.look_at_items(run)
        message += "" if warned is None else f"; an item of the data set is made so at {warned.site}"
    if warned is not None and warned.text:
        message += f": {warned.text}"
    site = origin.site if origin is not None else None if warned is None else warned.site
    return CameIn("NS803", message, weak=weak and warned is None, made_at=site)


def is_masked_only(x: Tensor) -> bool:
    """Whether everything in `x` that is not finite is minus infinity: states of a forward algorithm begin so."""
    return not x.is_complex() and bool((torch.isneginf(x) | torch.isfinite(x)).all())


def _kept_in_a_buffer(run: Run, x: Tensor) -> Birth | None:
    """Where `x` has no number left to recognise it by: the birth of what a buffer holds that went bad (a codebook, running statistics)."""
    if bool(torch.isfinite(x.detach()).any()):
        return None
    modules = [*run.recovery.training.modules(), *running_modules()]
    bad = (b for module in modules for b in module._buffers.values() if b is not None and is_bad(b))
    return next((birth for buffer in bad if (birth := run.search.made.origin_of(buffer)) is not None), None)


def _made_by(origin: DataOrigin | None) -> str:
    if origin is None:
        return ""
    rows = "" if origin.table is None else f", where it holds {kinds(origin.table)} {spread(origin.table)}"
    return f"; it is of {origin.name}, which came from {origin.site}: {origin.site.source}{rows}"
