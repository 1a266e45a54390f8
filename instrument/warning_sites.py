"""Warnings that are given while a stand-in calls on: shown at the script's line, and once for each line, as without the guards.

Python attributes a warning of torch's C++ code to the frame that called it, which inside a block is a stand-in's. All of the script's lines would be
one place then, and the filters that it set for its own modules would not apply.
"""

from __future__ import annotations

import functools
import sys
import warnings
from types import FrameType
from typing import Any

from instrument.callsite import is_ours
from instrument.interception import Replacement, replace_attribute


def redirect() -> Replacement:
    """Let warnings that name a line of ours be given again at the line that called it.

    What is replaced is the function behind `warnings.showwarning` and `catch_warnings`, which the script may set as it likes.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "instrument":
            vars(module)["__warningregistry__"] = None  # the place where Python remembers what it showed: here nothing is shown
    original = warnings._showwarnmsg  # type: ignore[attr-defined]

    @functools.wraps(original)
    def show(message: warnings.WarningMessage) -> Any:
        if is_ours(message.filename):
            caller = _caller(message.filename)
            if caller is not None:
                return _give_again(message, caller)
        return original(message)

    return replace_attribute(warnings, "_showwarnmsg", show)


def _caller(filename: str) -> FrameType | None:
    """The innermost frame that is not ours and stands outside of one in `filename`."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != filename:
        frame = frame.f_back
    while frame is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _give_again(message: warnings.WarningMessage, caller: FrameType) -> None:
    warnings.warn_explicit(
        message.message,
        message.category,
        caller.f_code.co_filename,
        caller.f_lineno,
        module=caller.f_globals.get("__name__") or "<unknown>",
        registry=caller.f_globals.setdefault("__warningregistry__", {}),
        source=message.source,
    )
