"""Runs a script or module as Python itself would, inside a guarded block.

`sys.argv`, `sys.path[0]`, `__main__`, exit status and traceback are the script's own. Everything of ours is imported before the script's folder
goes on `sys.path`, and where that folder has an `instrument`, `patches` or `latent_drift` of its own, the script's imports get its own.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import io
import os
import runpy
import signal
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instrument.callsite import is_ours
from instrument.circumstances import ended_by
from instrument.run import Run
from instrument.session import stable
from latent_drift.errors import GiveUpError

OUR_PACKAGES = ("instrument", "latent_drift", "patches")
GAVE_UP = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the script ended: the status that Python would have exited with, the signal that it would have died of (0: none), and the run."""

    status: int
    died_of: int
    run: Run


class _OwnNames(importlib.abc.MetaPathFinder):
    """Finds in the script's folder the packages that share a name with one of ours, as Python would have without us."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = frozenset(names)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The script's own module for a name that is also ours; None for every other."""
        return importlib.machinery.PathFinder.find_spec(fullname, [self._folder]) if fullname in self._names else None


def _yield_names(folder: str) -> list[str]:
    """Give up the names that the script's folder defines itself: our modules stay loaded, but imports by the script find its own."""
    here = str(Path(__file__).resolve().parent.parent)
    if os.path.realpath(folder) == here:
        return []
    taken = [name for name in OUR_PACKAGES if importlib.machinery.PathFinder.find_spec(name, [folder]) is not None]
    for name in taken:
        for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
            del sys.modules[loaded]
    if taken:
        sys.meta_path.insert(0, _OwnNames(folder, taken))
    return taken


def _fresh_main() -> types.ModuleType:
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins  # the module, as in a script that Python runs; in other modules it is a dictionary
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    return main


def _script(path: str, arguments: Sequence[str]) -> Callable[[], None]:
    """What executes the file at `path` in a fresh `__main__`. Raises OSError if it cannot be read; a syntax error is raised when it runs."""
    if os.path.isdir(path) or path.endswith((".zip", ".pyz")):
        folder = path

        def execute_folder() -> None:
            sys.path.insert(0, folder)
            _fresh_main()
            runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]

        sys.argv = [path, *arguments]
        return execute_folder
    absolute = os.path.abspath(path)  # what Python itself puts into __file__ and tracebacks
    with io.open_code(absolute) as file:
        source = file.read()
    folder = os.path.dirname(os.path.realpath(path))

    def execute() -> None:
        sys.path[0] = folder
        _yield_names(folder)
        main = _fresh_main()
        main.__dict__.update(__file__=absolute, __cached__=None, __spec__=None)
        main.__dict__["__loader__"] = importlib.machinery.SourceFileLoader("__main__", absolute)
        exec(compile(source, absolute, "exec", dont_inherit=True), main.__dict__)

    sys.argv = [path, *arguments]
    return execute


def _module(name: str, arguments: Sequence[str]) -> Callable[[], None]:
    def execute() -> None:
        folder = os.getcwd()
        sys.path[0] = folder
        sys.argv = ["-m", *arguments]
        _yield_names(folder)
        _fresh_main()
        runpy._run_module_as_main(name)  # type: ignore[attr-defined]

    return execute


def _without_runner_frames(tb: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback from the script's first frame on, as Python would print it."""
    while tb is not None:
        filename = tb.tb_frame.f_code.co_filename
        if not (is_ours(filename) or filename.startswith("<frozen runpy") or filename == runpy.__file__):
            return tb
        tb = tb.tb_next
    return None


def _without_stand_ins(tb: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback without the frames of our stand-ins further down: the script called torch, not us."""
    frames = []
    while tb is not None:
        if not is_ours(tb.tb_frame.f_code.co_filename):
            frames.append(tb)
        tb = tb.tb_next
    result: types.TracebackType | None = None
    for item in reversed(frames):
        result = types.TracebackType(result, item.tb_frame, item.tb_lasti, item.tb_lineno)
    return result


def _show(error: BaseException) -> None:
    """Report an exception that ended the script, through the script's own excepthook if it set one."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        trimmed = _without_runner_frames(current.__traceback__)
        # An error that we raised ourselves keeps its last frames out as well: it ends at the line of the script that caused it.
        current.__traceback__ = _without_stand_ins(trimmed)
        pending += [current.__cause__, current.__context__]
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except Exception:  # the script's own hook failed: Python shows both
        traceback.print_exc()


def _status_of(exit_: SystemExit) -> int:
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF if exit_.code < 0 or exit_.code > 255 else exit_.code
    sys.stdout.flush()
    sys.stderr.write(f"{exit_.code}\n")
    return 1


def run_guarded(
    target: str, arguments: Sequence[str], block: stable, *, as_module: bool = False, begin: Callable[[Run], None] | None = None
) -> Outcome:
    """Run a script (or with `as_module` a module) inside `block` and say how it ended.

    Args:
        begin: called with the run before the script starts, for whatever is to follow it.

    Raises:
        OSError: the script cannot be read; nothing has run.
    """
    execute = _module(target, arguments) if as_module else _script(target, arguments)
    status = died_of = 0
    with block as run:
        if begin is not None:
            begin(run)
        try:
            execute()
        except SystemExit as exit_:
            run.search.end(exit_)
            run.circumstances.end(ended_by(exit_))
            status = _status_of(exit_)
        except KeyboardInterrupt as error:
            run.circumstances.end(ended_by(error))
            _show(error)
            status, died_of = 128 + signal.SIGINT, signal.SIGINT
        except GiveUpError as error:
            run.circumstances.end(ended_by(error))
            _show(error)
            status = GAVE_UP
        except BaseException as error:
            run.search.end(error)
            run.circumstances.end(ended_by(error))
            _show(error)
            status = 1
        sys.stdout.flush()
    return Outcome(status, died_of, run)
