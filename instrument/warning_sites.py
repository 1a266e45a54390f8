"""Warnings that are given below a stand-in: shown at the script's line, and once for each line, as without the guards.

Python attributes a warning of torch's C++ code to the frame that called it, which inside a block is a stand-in's, and one of torch's Python code to a
frame so many calls up, where stand-ins are counted in. All of the script's lines would be one place then, and the filters that it set for its own
modules would not apply.
"""

from __future__ import annotations

import functools
import linecache
import sys
import threading
import warnings
from dataclasses import dataclass
from types import FrameType
from typing import Any

from instrument.callsite import is_ours, is_users
from instrument.events import Site
from instrument.interception import Replacement, replace_attribute
from instrument.runtime import RUNTIME

_AT_ITS_PLACE = threading.local()

_NUMPYS = ("encountered in ", "Mean of empty slice", "Degrees of freedom <= 0", "All-NaN ")
_MOST_SAID = 32


@dataclass(frozen=True, slots=True)
class Said:
    """A line of the script at which numpy warned that it makes numbers that are not finite."""

    site: Site
    text: str


def numpy_said(message: warnings.WarningMessage) -> Said | None:
    """The line of the script at which numpy warns that it makes numbers that are not finite; None for any other warning."""
    text = str(message.message)
    if not issubclass(message.category, RuntimeWarning) or not any(part in text for part in _NUMPYS) or not is_users(message.filename):
        return None
    source = linecache.getline(message.filename, message.lineno).strip() or None
    return Said(Site(message.filename, message.lineno, "", source), text)


def _listen(message: warnings.WarningMessage) -> None:
    """What numpy makes has no graph and passes no guard: that it warned is all that is known of it."""
    if RUNTIME.active and not RUNTIME.replaying and len(RUNTIME.run.search.said) < _MOST_SAID:
        said = numpy_said(message)
        if said is not None:
            RUNTIME.run.search.said.append(said)


def redirect() -> Replacement:
    """Let warnings that stand-ins have displaced be given again at the line that they are about.

    What is replaced is the function behind `warnings.showwarning` and `catch_warnings`, which the script may set as it likes.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "instrument":
            vars(module)["__warningregistry__"] = None  # the place where Python remembers what it showed: here nothing is shown
    original = warnings._showwarnmsg  # type: ignore[attr-defined]

    @functools.wraps(original)
    def show(message: warnings.WarningMessage) -> Any:
        _listen(message)
        named = None if getattr(_AT_ITS_PLACE, "given", False) else _named(message, sys._getframe(1))
        meant = None if named is None else _meant(named)
        if named is None or meant is None:
            return original(message)
        shown = named.f_globals.get("__warningregistry__")
        if shown is not None:
            shown.pop((str(message.message), message.category, message.lineno), None)
        return give_at(meant, message.message, message.category, message.source)

    return replace_attribute(warnings, "_showwarnmsg", show)


def give_at(frame: FrameType, message: Warning | str, category: type[Warning], source: Any = None) -> None:
    """Warn at the line that `frame` is at: the filters of its module decide, and it is remembered there that it was shown."""
    before, _AT_ITS_PLACE.given = getattr(_AT_ITS_PLACE, "given", False), True
    try:
        warnings.warn_explicit(
            message,
            category,
            frame.f_code.co_filename,
            frame.f_lineno,
            module=frame.f_globals.get("__name__") or "<unknown>",
            registry=frame.f_globals.setdefault("__warningregistry__", {}),
            source=source,
        )
    finally:
        _AT_ITS_PLACE.given = before


def _named(message: warnings.WarningMessage, frame: FrameType | None) -> FrameType | None:
    """The frame that the warning names, from the innermost one outwards."""
    while frame is not None and (frame.f_code.co_filename, frame.f_lineno) != (message.filename, message.lineno):
        frame = frame.f_back
    return frame


def _meant(named: FrameType) -> FrameType | None:
    """The frame that would have been named without the frames of ours up to there; None if it is that one."""
    ours, inner = 0, sys._getframe(2)
    while True:
        ours += is_ours(inner.f_code.co_filename)
        if inner is named or inner.f_back is None:
            break
        inner = inner.f_back
    frame: FrameType | None = named
    while frame is not None and ours:
        frame = frame.f_back
        ours -= frame is not None and not is_ours(frame.f_code.co_filename)
    return None if frame is named else frame
