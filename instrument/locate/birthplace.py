"""The statement that made data bad before any guarded operation met it, in numpy or plain Python: followed back from the variable that holds it.

A value that is not finite is followed to the statement that gave it to its variable, and from there to the bad variables that this statement reads,
for as long as their values are still at hand. Where the last statement calls a function of the script, whose variables are gone, the line that numpy
has warned about while it ran is taken, or the one statement in it that writes a NaN down; else `instrument.locate.made_again` does it once more. Read
once a step has failed; nothing is remembered for it.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from instrument.callsite import is_users
from instrument.events import Site
from instrument.locate.scene import MOST_NAMES, parsed, read, simple_statements, written
from instrument.runtime import is_readable
from instrument.warning_sites import Said
from latent_drift.numerics.finite import is_finite

MOST_STEPS = 12  # from a variable to what it was made of
MOST_READ = 4_096  # elements of a list
LARGEST = 2**24  # elements of a table
INSIDE = 64  # attributes, entries of a dictionary


@dataclass(frozen=True, slots=True)
class Birthplace:
    """Where a variable's bad value comes from, as far as the values at hand tell. `statements` are those of `frame` that made it, in order, and
    `called` the functions of the script that they call: done once more they may tell more. There are none where nothing is left to ask."""

    site: Site
    frame: FrameType
    statements: tuple[ast.stmt, ...] = ()
    called: tuple[ast.AST, ...] = ()


def birthplace(name: str, frame: FrameType, said: Sequence[Said]) -> Birthplace | None:
    """The statement that made what a variable holds bad; None where it only handed on what came from somewhere else.

    Args:
        name: a name of `frame` that holds numbers that are not finite.
        said: what numpy has warned about so far, in order: arithmetic that makes NaN of finite numbers warns, so that a statement which does not, and
            reads nothing bad that is still there, made it from a literal, a file or a function of the script.
    """
    line: int | None = frame.f_lineno
    visited: list[tuple[ast.stmt, FrameType]] = []
    for _ in range(MOST_STEPS):
        held = frame.f_locals.get(name, frame.f_globals.get(name))
        statement = last_writing(name, frame, line)
        if statement is None or any(statement is known for known, _ in visited):
            outer = None if visited and visited[-1][1] is frame else _same_in(held, frame.f_back)
            if outer is None:
                break
            name, frame = outer
            line = frame.f_lineno
            continue
        visited.append((statement, frame))
        warned = _warned(statement, frame, said)
        if warned is not None:
            return Birthplace(warned, frame)
        source = _bad_input(statement, name, frame)
        if source is None and not _goes_on(statement, name):
            break
        # What a statement does to its own variable is taken for a step on the way: what the variable held before is gone.
        name, line = source or name, statement.lineno
        if name not in frame.f_locals:
            outer = _same_in(frame.f_globals.get(name), frame.f_back)
            if outer is None:
                break
            name, frame = outer
            line = frame.f_lineno
    return _chosen(visited)


def _chosen(visited: Sequence[tuple[ast.stmt, FrameType]]) -> Birthplace | None:
    """Of the statements on the way back: the first that writes a NaN down, itself or in what it calls; else the last that makes more than room."""
    for statement, frame in visited:
        file = frame.f_code.co_filename
        if _names_nan(statement) or any(_names_nan(part.node) for part in _called(statement, file)):
            return Birthplace(_site_in(statement, frame), frame)
    made = [one for one in visited if not _only_makes_room(one[0])]
    if not made:
        return None
    statement, frame = made[-1]
    way = tuple(each for each, at in reversed(made) if at is frame)
    called = tuple(part.node for each in way for part in _called(each, frame.f_code.co_filename))
    return Birthplace(_site_in(statement, frame), frame, way, called)


def _only_makes_room(statement: ast.stmt) -> bool:
    """`rows = []`, `out = np.zeros(n)`, `x = torch.randn(8, 4)`: what lies there bad was put there later. A call that is given the variable may do
    anything, or nothing."""
    if isinstance(statement, ast.Expr):
        return True
    value = getattr(statement, "value", None)
    if isinstance(value, ast.List | ast.Tuple):
        return not value.elts
    if isinstance(value, ast.Dict):
        return not value.keys
    return isinstance(value, ast.Call) and _called_name(value.func) in _ROOM


_ROOM = frozenset(
    {
        *("zeros", "ones", "empty", "zeros_like", "ones_like", "empty_like", "list", "dict", "defaultdict", "deque", "eye", "arange", "linspace"),
        *("randn", "rand", "randint", "randperm", "randn_like", "rand_like", "normal", "uniform", "standard_normal", "integers", "random"),
    }
)


def last_writing(name: str, frame: FrameType, line: int | None) -> ast.stmt | None:
    """The last statement of a frame before `line` that gives `name`, or a part of what it holds, a value; the last of all where none is before."""
    code = frame.f_code
    writing = [s for s in simple_statements(code.co_filename, code.co_name, code.co_firstlineno) if name in written(s)]
    before = [s for s in writing if s.lineno < (line or sys.maxsize)]
    return max(before or writing, key=lambda s: s.lineno, default=None)


def is_hole(value: Any, depth: int = 1) -> bool:
    """Whether something holds a number that is not finite: a tensor, an array, a list of numbers, or an attribute or entry that is one."""
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    table = as_table(value)
    if table is not None:
        return not is_finite(table)
    if isinstance(value, list | tuple):
        return any(is_hole(item, depth) for item in value[:MOST_READ])
    return depth > 0 and any(is_hole(item, depth - 1) for item in parts(value))


def parts(value: Any) -> list[Any]:
    """What an object of the script holds: the entries of a dictionary, the attributes of anything else."""
    if isinstance(value, dict):
        return list(value.values())[:INSIDE]
    own = getattr(value, "__dict__", None)
    return list(own.values())[:INSIDE] if isinstance(own, dict) and not isinstance(value, type) and not hasattr(value, "__spec__") else []


def as_table(value: Any) -> Tensor | None:
    """A tensor or an array of floating-point numbers as a tensor; None for anything else, and for what is too large to be read."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        if value.dtype.kind != "f" or not 0 < value.size <= LARGEST or value.dtype.itemsize not in (2, 4, 8) or not value.dtype.isnative:
            return None
        return torch.from_numpy(numpy.array(value))
    if isinstance(value, Tensor) and is_readable(value) and 0 < value.numel() <= LARGEST and value.untyped_storage().nbytes():
        return value.detach()
    return None


def _same_in(value: Any, frame: FrameType | None) -> tuple[str, FrameType] | None:
    """The name by which a calling frame knows this very object, and that frame."""
    while frame is not None:
        if is_users(frame.f_code.co_filename) and len(frame.f_locals) < MOST_NAMES:
            for name, held in list(frame.f_locals.items()):
                if held is value:
                    return name, frame
        frame = frame.f_back
    return None


def _goes_on(statement: ast.stmt, name: str) -> bool:
    """Whether a statement computes from what the variable held before, or writes into a part of it without writing a NaN down."""
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(isinstance(target, ast.Subscript) for target in targets):
            return not _names_nan(statement)
        return statement.value is not None and any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(statement.value))
    return not _names_nan(statement)


def _bad_input(statement: ast.stmt, written_name: str, frame: FrameType) -> str | None:
    """A name that a statement reads and that holds something bad: what it writes itself counts only where it was bad before."""
    for name in sorted(read(statement)):
        if name == written_name:
            continue
        value = frame.f_locals.get(name, frame.f_globals.get(name))
        if not callable(value) and is_hole(value):
            return name
    return None


@dataclass(frozen=True, slots=True)
class _Part:
    """A function or class of the script that a statement calls."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def lines(self) -> range:
        return range(self.node.lineno, (self.node.end_lineno or self.node.lineno) + 1)


def _warned(statement: ast.stmt, frame: FrameType, said: Sequence[Said]) -> Site | None:
    """The first line in a statement, or in what it calls, at which numpy has warned."""
    file = frame.f_code.co_filename
    lines = [range(statement.lineno, (statement.end_lineno or statement.lineno) + 1), *(part.lines for part in _called(statement, file))]
    return next((one.site for one in said if one.site.file == file and any(one.site.line in part for part in lines)), None)


def _site_in(statement: ast.stmt, frame: FrameType) -> Site:
    """The statement, or the one in the functions it calls that must have done it: the only one there is, or the only one that writes a NaN down."""
    file, function = frame.f_code.co_filename, frame.f_code.co_name
    called = list(_called(statement, file))
    inside = [(s, part) for part in called for s in ast.walk(part.node) if isinstance(s, ast.Assign | ast.AugAssign | ast.Return)]
    literal = [(s, part) for s, part in inside if _names_nan(s)]
    found = literal if len({s.lineno for s, _ in literal}) == 1 else inside if len(called) == len(inside) == 1 else []
    if found and not _names_nan(statement):
        statement, function = found[0][0], found[0][1].name
    return Site(file, statement.lineno, function, linecache.getline(file, statement.lineno).strip() or None)


def _called(statement: ast.AST, file: str, depth: int = 3) -> Iterator[_Part]:
    """The functions, methods and classes of the same file that a statement calls, and those that these call."""
    tree = parsed(file)
    calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    if tree is None or depth == 0 or not calls:
        return
    by_name = {function.id for function in calls if isinstance(function, ast.Name)}
    by_attribute = {function.attr for function in calls if isinstance(function, ast.Attribute)}
    methods = {item for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node is not statement:
            if node.name in (by_attribute if node in methods else by_name):
                yield _Part(node)
                yield from _called(node, file, depth - 1)


def _called_name(function: ast.expr) -> str | None:
    return function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else None


def _names_nan(node: ast.AST) -> bool:
    """Whether a NaN is written down: `float("nan")`, `np.nan`, `math.nan`."""
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and each.attr.lower() == "nan":
            return True
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "float" and each.args:
            given = each.args[0]
            if isinstance(given, ast.Constant) and isinstance(given.value, str) and given.value.strip().lower().lstrip("+-") == "nan":
                return True
    return False
