"""Which functions ran as compiled code in a run that failed: operations inside them are one call to whoever watches from Python.

Dynamo keeps what it compiled; that is read when a step fails and when the report is written, never in a healthy step, and Dynamo is not imported
for it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from types import CodeType
from typing import Any

from instrument.callsite import is_users

_RESUMED = re.compile(r"torch_dynamo_resume_in_(.+)_at_\d+$")


@dataclass(frozen=True, slots=True, order=True)
class CompiledFunction:
    """A function of the user's that was compiled, where it is defined."""

    file: str
    line: int
    name: str


def _records() -> list[Any]:
    """Dynamo's weak references to the code it made, oldest first. None of it is public: where it is kept otherwise, nothing is known."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    return list(getattr(getattr(frames, "output_codes", None), "seen", ()))


def _original(made: CodeType) -> CodeType:
    known = getattr(sys.modules.get("torch._dynamo.utils"), "orig_code_map", {})
    found = made if made not in known else known[made]
    return found if isinstance(found, CodeType) else made


def _function(code: CodeType) -> CompiledFunction | None:
    """The function of the user's that was compiled. Where its graph breaks it is compiled in parts, and the names of the later parts hold its own."""
    if not is_users(code.co_filename):
        return None
    return CompiledFunction(code.co_filename, code.co_firstlineno, _RESUMED.sub(r"\1", code.co_qualname))


class Compiled:
    """The functions compiled since one run began. One that was compiled before and calls a guarded operation is compiled anew under the run, and so
    is whatever runs in a step that is watched."""

    def __init__(self) -> None:
        self._before = {id(record): record for record in _records()}  # kept alive so that ids stay theirs
        self._found: dict[tuple[str, str], CompiledFunction] = {}
        self._failed = False

    def failed(self) -> None:
        """A step failed: what was compiled up to now is remembered, since its code may be gone when the report is written."""
        self._failed = True
        self._look()

    def _look(self) -> None:
        for record in _records():
            code = None if id(record) in self._before else record()
            function = None if code is None else _function(_original(code))
            if function is not None:
                # The part that begins earliest has the line of the definition.
                key = (function.file, function.name)
                self._found[key] = min(function, self._found.get(key, function))

    @property
    def unseen(self) -> tuple[CompiledFunction, ...]:
        """What could not be seen, in order of file and line; empty for a run in which no step failed."""
        return self.functions if self._failed else ()

    @property
    def functions(self) -> tuple[CompiledFunction, ...]:
        """All that was compiled since the run began and is known, in order of file and line."""
        self._look()
        return tuple(sorted(self._found.values()))
