"""The first line of the script's functions after which something holds a number that is not finite, while a piece of it is done once more.

For what numpy or plain Python computes and is silent about. Nothing is traced in the script's own run.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from instrument.callsite import is_users
from instrument.events import Site
from instrument.locate.birthplace import is_hole

MOST_LINES = 20_000
"""Lines that are looked at."""

_Trace = Callable[[FrameType, str, Any], Any]


class LineTracer:
    """What was found: `site`, None while nothing is."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self._lines = 0

    def enter(self, frame: FrameType, event: str, argument: Any) -> _Trace | None:
        """A function is called: the script's are followed line by line."""
        if self.site is not None or self._lines >= MOST_LINES or not is_users(frame.f_code.co_filename):
            return None
        known = set(self._bad(frame))  # it was given these
        before: int | None = None
        gives: int | None = None  # the statement that gives a value back: a `with` around it is left after it

        def follow(frame: FrameType, event: str, argument: Any) -> _Trace | None:
            nonlocal before, gives, known
            self._lines += 1
            if self.site is not None or self._lines >= MOST_LINES:
                return None
            if event in ("line", "return"):
                bad = set(self._bad(frame))
                made = event == "return" and not bad and not known and is_hole(argument)
                if before is not None and (bad - known or made):
                    self._found(frame, gives if made and gives is not None else before)
                    return None
                known, before = bad, frame.f_lineno
                if linecache.getline(frame.f_code.co_filename, before).lstrip().startswith("return"):
                    gives = before
            return follow

        return follow

    def _bad(self, frame: FrameType) -> Iterator[str]:
        return (name for name, value in list(frame.f_locals.items()) if not callable(value) and is_hole(value))

    def _found(self, frame: FrameType, line: int) -> None:
        code = frame.f_code
        self.site = self.site or Site(code.co_filename, line, code.co_name, linecache.getline(code.co_filename, line).strip() or None)


@contextmanager
def tracing_lines() -> Iterator[LineTracer]:
    """Trace what this thread calls inside. Where a debugger or a coverage tool traces already, nothing is found."""
    tracer = LineTracer()
    if sys.gettrace() is not None:
        yield tracer
        return
    sys.settrace(tracer.enter)
    try:
        yield tracer
    finally:
        sys.settrace(None)
