"""Which line of the user's source is running: never one of torch, of this distribution or of the standard library."""

from __future__ import annotations

import itertools
import linecache
import re
import sys
import sysconfig
from enum import Enum
from functools import cache
from pathlib import Path
from types import FrameType

import torch
import torch.fx
from torch import nn

import latent_drift
import patches
from instrument.events import Site


class _Origin(Enum):
    OURS = 0  # torch or this distribution: never the answer
    LIBRARY = 1  # an installed package or the standard library: the answer only if nobody else is on the stack
    USER = 2


def _folder(file: str | None) -> str:
    return str(Path(file).resolve().parent) + "/" if file else "\0"


_PACKAGES = (_folder(__file__), _folder(latent_drift.__file__), _folder(patches.__file__))
_OURS = (_folder(torch.__file__), *_PACKAGES)
_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple({str(Path(_PATHS[key]).resolve()) + "/" for key in ("stdlib", "platstdlib", "purelib", "platlib")})
# The demo's scripts play the user's part, so their lines are answers like any other.
_DEMO = _folder(__file__) + "demo/"


@cache
def _origin(filename: str) -> _Origin:
    if filename.startswith("<frozen") or filename in ("<string>", "<__array_function__ internals>"):
        return _Origin.LIBRARY
    resolved = filename if filename.startswith("<") else str(Path(filename).resolve())
    if resolved.startswith(_OURS) and not resolved.startswith(_DEMO):
        return _Origin.OURS
    # tests and scripts may live below a prefix; what counts is the library folder itself
    return _Origin.LIBRARY if resolved.startswith(_LIBRARIES) or "/site-packages/" in resolved else _Origin.USER


def is_ours(filename: str) -> bool:
    """True for a file of this distribution (its demo scripts aside), not for one of torch."""
    return not filename.startswith("<") and (resolved := str(Path(filename).resolve())).startswith(_PACKAGES) and not resolved.startswith(_DEMO)


def is_users(filename: str) -> bool:
    """True for a file of the user's own: not of torch, of this distribution, of an installed package or of the standard library."""
    return _origin(filename) is _Origin.USER


def site_of(frame: FrameType) -> Site:
    """The line that this frame is at."""
    code = frame.f_code
    line = frame.f_lineno or code.co_firstlineno
    source = linecache.getline(code.co_filename, line, frame.f_globals).strip()
    return Site(code.co_filename, line, code.co_qualname, source or None)


def user_frame(frame: FrameType | None = None) -> FrameType | None:
    """The innermost frame of the user's own code; failing that of an installed package; None if there is neither."""
    frame = frame if frame is not None else sys._getframe(1)
    fallback: FrameType | None = None
    while frame is not None:
        origin = _origin(frame.f_code.co_filename)
        if origin is _Origin.USER:
            return frame
        if origin is _Origin.LIBRARY and fallback is None and not frame.f_code.co_filename.startswith("<"):
            fallback = frame
        frame = frame.f_back
    return fallback


def user_site() -> Site | None:
    """The line of the user's own code that is running now. In a compiled graph that a Python backend runs, the line that the running node was
    traced from."""
    frame = user_frame(sys._getframe(1))
    while frame is not None and frame.f_code.co_filename.startswith("<eval_with_key>"):
        traced = _traced_site(frame)
        if traced is not None:
            return traced
        frame = user_frame(frame.f_back) if frame.f_back is not None else None
    return None if frame is None else site_of(frame)


_TRACED_FRAME = re.compile(r'File "(.+)", line (\d+), in (.+)')


def _traced_site(frame: FrameType) -> Site | None:
    """Where the node of a `torch.fx.GraphModule` that `frame` is at was written. The generated code's own lines mean nothing to anybody."""
    module = frame.f_locals.get("self")
    lines, start = getattr(module, "_lineno_map", None), getattr(module, "_prologue_start", None)
    if not isinstance(module, torch.fx.GraphModule) or not isinstance(lines, dict) or not isinstance(start, int):
        return None
    index = lines.get(frame.f_lineno - start)
    node = next(itertools.islice(module.graph.nodes, index, None), None) if index is not None else None
    found = _TRACED_FRAME.findall((node.stack_trace if node is not None else None) or "")
    for file, line, function in reversed(found):
        if _origin(file) is _Origin.USER:
            return Site(file, int(line), function, linecache.getline(file, int(line)).strip() or None)
    return None


def module_path() -> str | None:
    """The path of the innermost `nn.Module` that is being called, from the outermost one: `encoder.enc_logvar`; None outside any.

    Only for reports: it searches the outermost module for the innermost.
    """
    frame: FrameType | None = sys._getframe(1)
    innermost: nn.Module | None = None
    outermost: nn.Module | None = None
    while frame is not None:
        if frame.f_code.co_name == "_call_impl" and frame.f_code.co_filename == nn.modules.module.__file__:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                innermost = module if innermost is None else innermost
                outermost = module
        frame = frame.f_back
    if innermost is None or outermost is None:
        return None
    for name, module in outermost.named_modules():
        if module is innermost:
            return name or type(outermost).__name__
    return type(innermost).__name__
