"""Calls that somebody's `__torch_function__` handles: a tensor subclass of the script's own, or a mode of its own.

Such a handler compares (`func is torch.mean`) or looks up (`HANDLED[func]`) the function that the script knows by name, which inside a block is the
stand-in. Tensor's methods and torch's Python functions name what stands in their place; torch's C functions name themselves, so there the call is
handed over here. The guard judges when the handler calls on, with the handler out of the way: it sees the script's calls and not the guard's.

torch's own subclasses and modes compare with torch's own objects, so they are called as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from types import BuiltinFunctionType
from typing import Any

import torch
from torch.overrides import _get_current_function_mode, _get_overloaded_args, handle_torch_function

from instrument.guards.base import Function, Spelling, is_traced, mimic
from instrument.runtime import QUIET, RUNTIME, function_modes, without_function_modes

Judge = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Takes the result, the arguments and the keyword arguments of a call; returns what the script gets."""

is_handled = torch._C._has_torch_function  # type: ignore[attr-defined]
"""True for a sequence of arguments if a mode is on or one of them has a handler: a few nanoseconds."""
_grad_enabled = torch.is_grad_enabled


def is_foreign(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the handler that comes first is neither torch's nor ours. Asked only where there is one."""
    if function_modes():
        return _of_others(type(_get_current_function_mode()))  # type: ignore[no-untyped-call]
    return any(_of_others(type(value)) for value in _get_overloaded_args((*args, *kwargs.values())))


def _of_others(handler: type) -> bool:
    return handler.__module__.partition(".")[0] not in ("torch", "instrument")


def call_on(stand_in: Function, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let the handler have the call, under the name that the script called."""
    if isinstance(original, BuiltinFunctionType):
        return handle_torch_function(stand_in, (*args, *kwargs.values()), *args, **kwargs)
    return original(*args, **kwargs)


def judging(original: Function, spelling: Spelling, judge: Judge, compiled: Function | None = None) -> Function:
    """The stand-in of a guard that judges a result: calls the original as the script did, and gives what `judge` makes of it. `compiled` takes the
    place of the original in code that Dynamo reads, where nothing can be judged.

    Inside a library optimizer's own update nothing is judged here: the step guard judges that by its outcome. A closure's forward and backward are
    the script's, and so is the update of an optimizer that the script itself defines: a fault in it has a line of its own.
    """

    op = spelling.op

    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return (compiled or original)(*args, **kwargs)
        if not RUNTIME.active or (QUIET and not _grad_enabled()):
            return original(*args, **kwargs)
        if is_handled(args) or (kwargs and is_handled((*kwargs.values(),))):
            if is_foreign(args, kwargs):
                # Some guards have a shorter way in front of this one: the script knows what stands under the name.
                return call_on(getattr(spelling.owner, spelling.name), original, args, kwargs)
            return _judged_once(original, op, judge, args, kwargs)
        out = judge(original(*args, **kwargs), args, kwargs)
        if _passing:
            _meet(op, out)
        return out

    return guarded


class _Passing:
    """A call of an operation that is on its way through a handler of torch's or ours, and what a stand-in that was called on that way judged."""

    __slots__ = ("judged", "op", "thread")

    def __init__(self, op: str) -> None:
        self.op = op
        self.thread = get_ident()
        self.judged: Any = _NOTHING

    def __enter__(self) -> _Passing:
        _passing.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _passing.remove(self)


_NOTHING = object()
_passing: list[_Passing] = []


def _judged_once(original: Function, op: str, judge: Judge, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call through a handler: torch names a stand-in of the operation to it, which it calls, and which judges."""
    with _Passing(op) as passing:
        out = original(*args, **kwargs)
    if passing.judged is out:
        return out
    with without_function_modes():
        return judge(out, args, kwargs)


def _meet(op: str, result: Any) -> None:
    """A stand-in of `op` has judged this result: whoever waits for it knows."""
    thread = get_ident()
    for passing in _passing:
        if passing.op == op and passing.thread == thread:
            passing.judged = result
