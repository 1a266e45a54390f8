"""A statement that made bad data by calling a function of the script, done once more to see which line in it did: its variables are gone.

Every torch operation is looked at, and what numpy warns about is heard, however the script has filtered it. Only what computes is done again: no
function that opens, writes, trains, asks or keeps something.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import linecache
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from instrument.distributed.agreement import is_at_work
from instrument.events import Site
from instrument.locate.birthplace import Birthplace, is_hole
from instrument.locate.births import Births
from instrument.locate.items import bad_item, loaded_data_sets, methods_of, statements_that_keep_a_hole
from instrument.locate.line_tracer import tracing_lines
from instrument.locate.replay import MOST_COPIED, aside
from instrument.locate.scene import assigned, read, repeatable, scene_of, written
from instrument.locate.watch import Watching
from instrument.runtime import RUNTIME
from instrument.tensors import is_there
from instrument.warning_sites import Said, numpy_said

if TYPE_CHECKING:
    from instrument.run import Run

_LOG = logging.getLogger(__name__)

MOST = 2
"""Times in a run."""

_LEAVES_A_TRACE = frozenset(
    {
        *("open", "input", "exec", "eval", "exit", "quit", "next", "__import__", "save", "savez", "savetxt", "dump", "dumps", "write", "writelines"),
        *("writerow", "to_csv", "unlink", "remove", "rename", "mkdir", "makedirs", "rmtree", "system", "Popen", "run", "call", "check_call"),
        *("urlopen", "urlretrieve", "request", "download", "load_state_dict", "backward", "step", "zero_grad", "sleep", "Pool", "Process"),
        *("spawn", "fork", "send"),
    }
)


class MadeAgain:
    """How often statements that made data were done once more, and the doing."""

    def __init__(self) -> None:
        self._done = 0

    def look(self, run: Run, place: Birthplace) -> Said | None:
        """The line at which the statements that made bad data, or the functions of the script that they call, make the first number that is not
        finite; None where it cannot be told."""
        made = [again for statement in place.statements if (again := repeatable(statement)) is not None]
        if not made or len(made) < len(place.statements) or self._done >= MOST or RUNTIME.replaying or is_at_work() or len(run.threads) > 1:
            return None
        names = {**place.frame.f_globals, **place.frame.f_locals}
        if not all(map(_only_computes, (*made, *place.called))) or not _inputs_are_there(made[0], names):
            return None
        self._done += 1
        try:
            return _first_bad(run, made, place.frame, {name: _own(value) for name, value in names.items()})
        except Exception:  # of statements that are run once more for our sake: the script's own run of them is over
            _LOG.debug("what made the data could not be done once more", exc_info=True)
            return None

    def look_at_items(self, run: Run) -> Said | None:
        """The same for the item of a data set that a loader gives: the first that holds a number that is not finite is made once more, from a copy of
        the data set, so that what it counts and draws stays as it is."""
        if self._done >= MOST or RUNTIME.replaying or is_at_work() or len(run.threads) > 1:
            return None
        self._done += 1
        for data_set in loaded_data_sets():
            if not all(map(_only_computes, methods_of(data_set))):
                continue
            try:
                with aside(run, []):
                    run.search.births = Births()
                    make = bad_item(copy.deepcopy(data_set))
                    found = None if make is None else first_bad_in(run, make)
                if found is None and make is not None:
                    found = _made_with(run, data_set)
            except Exception:  # as above
                _LOG.debug("an item of a data set could not be made once more", exc_info=True)
                continue
            if found is not None:
                return found
        return None


def _made_with(run: Run, data_set: Any) -> Said | None:
    """For items that are bad because the data set computed something bad when it was made (a standard deviation that overflowed): the line that made
    it, or that of the first statement that keeps such a number."""
    file = inspect.getfile(type(data_set))
    keeping = statements_that_keep_a_hole(data_set)
    for statement in keeping:
        names = {**vars(sys.modules[type(data_set).__module__]), "self": copy.deepcopy(data_set)}
        if not _only_computes(statement) or not all(name in names or hasattr(sys.modules["builtins"], name) for name in read(statement)):
            continue
        code = compile(ast.Module([statement], []), file, "exec")
        with aside(run, []):
            run.search.births = Births()
            found = first_bad_in(run, functools.partial(exec, code, names))
        if found is not None:
            return found
    first = keeping[0].lineno if keeping else None
    return None if first is None else Said(Site(file, first, "__init__", linecache.getline(file, first).strip() or None), "")


def _first_bad(run: Run, statements: list[ast.stmt], frame: FrameType, names: dict[str, Any]) -> Said | None:
    file = frame.f_code.co_filename
    with aside(run, [scene_of(frame, frame.f_lineno)]), _generators_kept(frame):
        run.search.births = Births()
        for statement in statements:
            code = compile(ast.Module([statement], []), file, "exec")
            found = first_bad_in(run, lambda code=code: exec(code, names))  # type: ignore[misc]
            if found is not None:
                return found
            with torch.no_grad():
                if any(is_hole(names.get(name)) for name in written(statement)):
                    return Said(Site(file, statement.lineno, frame.f_code.co_name, linecache.getline(file, statement.lineno).strip() or None), "")
    return None


def first_bad_in(run: Run, do: Callable[[], object]) -> Said | None:
    """The first line of the script that makes a number that is not finite in what is done, as far as torch's operations, numpy's warnings or the
    variables of the script's functions show it."""
    heard: list[Said] = []
    with _hearing(heard), torch._C._EnableTorchFunction(), torch.enable_grad(), Watching(run) as mode, tracing_lines() as traced:
        do()
    mode.done = True
    birth = run.search.births.origin()
    if birth is not None and birth.code != "NS803":
        return Said(birth.site, birth.message)
    if heard:
        return heard[0]
    return None if traced.site is None else Said(traced.site, "")


def _only_computes(node: ast.AST) -> bool:
    for each in ast.walk(node):
        if isinstance(each, ast.Global | ast.Nonlocal | ast.Await | ast.Yield | ast.YieldFrom | ast.While):
            return False
        if isinstance(each, ast.Call):
            name = each.func.id if isinstance(each.func, ast.Name) else each.func.attr if isinstance(each.func, ast.Attribute) else ""
            if name in _LEAVES_A_TRACE:
                return False
    return True


def _inputs_are_there(statement: ast.stmt, names: dict[str, Any]) -> bool:
    """Whether what a statement reads still is what it read: none of it is what it wrote."""
    return not read(statement) & assigned(statement) and all(name in names or hasattr(sys.modules["builtins"], name) for name in read(statement))


def _own(value: Any) -> Any:
    """A copy of what may be written into."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray) and value.size <= MOST_COPIED:
        return value.copy()
    if is_there(value) and not value.requires_grad and value.numel() <= MOST_COPIED:
        return value.clone()
    return list(value) if type(value) is list else dict(value) if type(value) is dict else value


@contextmanager
def _generators_kept(frame: FrameType) -> Iterator[None]:
    """The script's own random generators draw what they would have drawn."""
    numpy = sys.modules.get("numpy")
    kept: list[tuple[Any, Any]] = []
    for value in {id(v): v for v in (*frame.f_globals.values(), *frame.f_locals.values())}.values():
        if isinstance(value, random.Random | torch.Generator) or (
            numpy is not None and isinstance(value, numpy.random.Generator | numpy.random.RandomState)
        ):
            kept.append((value, _state(value)))
    try:
        yield
    finally:
        for value, state in kept:
            _put_back(value, state)


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, torch.Generator) or hasattr(generator, "get_state"):
        return generator.get_state()
    return copy.deepcopy(generator.bit_generator.state)


def _put_back(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, torch.Generator) or hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


@contextmanager
def _hearing(heard: list[Said]) -> Iterator[None]:
    """What numpy warns about, whether the script shows it or not."""
    numpy = sys.modules.get("numpy")
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        if numpy is None:
            yield
        else:
            with numpy.errstate(all="warn", under="ignore"):
                yield
    heard += filter(None, map(numpy_said, given))
