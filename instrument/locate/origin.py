"""What can be said of a tensor that came in bad: which variable of the script it is, in which rows, and what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from instrument.callsite import is_ours, is_users, user_frame
from instrument.runtime import is_plain

ROWS_NAMED = 5
MOST_FRAMES = 8
MOST_NAMES = 400  # of one frame, of which only tensors are looked at
_LOOK_AT = 200  # values of one frame that are searched for a tensor: a notebook's namespace is large


def kinds(x: Tensor) -> str:
    """`NaN`, `Inf` or `NaN and Inf`: what a tensor holds beside finite numbers."""
    values = x.detach()
    has_nan, has_inf = bool(torch.isnan(values).any()), bool(torch.isinf(values).any())
    return "NaN and Inf" if has_nan and has_inf else "NaN" if has_nan else "Inf"


def spread(x: Tensor) -> str:
    """Where the bad elements are: `in 3 of 64 rows (5, 17, 40), first at (5, 2)`. Rows are the entries of the first dimension."""
    bad = ~torch.isfinite(x.detach())
    if not bool(bad.any()):
        return "that were gone when it was looked at again"  # another thread has mended it meanwhile
    if x.dim() == 0:
        return "its only element"
    first = tuple(torch.nonzero(bad)[0].tolist())
    rows = torch.nonzero(bad.flatten(1).any(1) if x.dim() > 1 else bad).flatten().tolist()
    named = ", ".join(map(str, rows[:ROWS_NAMED])) + (", ..." if len(rows) > ROWS_NAMED else "")
    place = f", first at {first}" if x.dim() > 1 else ""
    return f"in {len(rows)} of {x.shape[0]} rows ({named}){place}"


def _values(frame: FrameType) -> Iterable[tuple[str, Any]]:
    yield from frame.f_locals.items()
    if frame.f_globals is not frame.f_locals:
        yield from frame.f_globals.items()


def _is_same(value: Any, x: Tensor) -> bool:
    return value is x or (
        is_plain(value)  # what a transform wraps has no memory of its own
        and is_plain(x)
        and value.shape == x.shape
        and value.data_ptr() == x.data_ptr()
        and value.stride() == x.stride()
    )


def _frames() -> Iterator[FrameType]:
    """The running frames, from the script's innermost outwards."""
    frame = user_frame()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _looked_at(frame: FrameType) -> Iterable[tuple[str, Any]]:
    return islice(_values(frame), _LOOK_AT + 1)


def variable_name(x: Tensor) -> str | None:
    """What the running frames of the script call this tensor: `x`, `batch['image']`, `data[0]`, `self.mask`; None if none of them holds it."""
    for frame in _frames():
        if not is_ours(frame.f_code.co_filename):
            for label, value in _looked_at(frame):
                found = _within(label, value, x)
                if found is not None:
                    return found
    return None


def undetached(x: Tensor) -> Tensor | None:
    """A variable of the script's frames that holds the very numbers of `x`, which has no graph, and still has the graph that made them: what a
    generator gave, where `x` is what its discriminator was shown (`fake.detach()`)."""
    held = (value for frame in _frames() for _, value in _looked_at(frame) if isinstance(value, Tensor))
    return next((value for value in held if value is not x and value.grad_fn is not None and _is_same(value, x)), None)


def named_tensors() -> Iterator[tuple[str, Tensor, FrameType]]:
    """The tensors that the names of the running functions and of the top level hold, each with the frame that it is a name of."""
    for frame in islice((f for f in _frames() if is_users(f.f_code.co_filename)), MOST_FRAMES):
        for name, value in list(frame.f_locals.items())[:MOST_NAMES]:
            if isinstance(value, Tensor):
                yield name, value, frame


def running_modules() -> Iterator[nn.Module]:
    """The modules that names of the running frames hold, each with those inside it."""
    for frame in _frames():
        for value in list(frame.f_locals.values())[:_LOOK_AT]:
            if isinstance(value, nn.Module):
                yield from value.modules()


def bad_data(like: Tensor) -> Tensor | None:
    """A variable of the script's frames that is data with a hole, whole or in the rows of `like`: it has no graph and ends in the same shape."""
    for frame in _frames():
        for _, value in _looked_at(frame):
            if type(value) is Tensor and value.is_floating_point() and not value.requires_grad and value.grad_fn is None and value.numel():
                fits = value.shape == like.shape or (value.dim() and like.dim() and value.shape[1:] == like.shape[1:])
                if fits and value.device == like.device and not bool(torch.isfinite(value).all()):
                    return value
    return None


def _within(label: str, value: Any, x: Tensor) -> str | None:
    if isinstance(value, Tensor):
        return label if _is_same(value, x) else None
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        parts = [(f"{label}[{key!r}]", item) for key, item in list(value.items())[:_LOOK_AT]]
    elif isinstance(value, list | tuple):
        parts = [(f"{label}[{i}]", item) for i, item in enumerate(value[:_LOOK_AT])]
    elif isinstance(value, nn.Module):
        parts = [(f"{label}.{name}", item) for named in (value.named_buffers, value.named_parameters) for name, item in named()]
    elif label == "self":
        parts = [(f"self.{name}", item) for name, item in list(getattr(value, "__dict__", {}).items())[:_LOOK_AT]]
    return next((name for name, item in parts if isinstance(item, Tensor) and _is_same(item, x)), None)


def feeding_parameters(node: Any, most: int = 3, reach: int = 64) -> list[Tensor]:
    """The nearest leaves that an operation's graph node computes from: at most `most`, within `reach` nodes."""
    found: list[Tensor] = []
    seen: set[Any] = {node}
    queue = [node]
    while queue and len(seen) < reach and len(found) < most:
        current = queue.pop(0)
        variable = getattr(current, "variable", None)
        if isinstance(variable, Tensor) and not any(variable is other for other in found):
            found.append(variable)
        for following, _ in current.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return found
