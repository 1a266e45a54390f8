"""The script as it stood when a number was found bad: its running functions, what their names hold, and the statements that made that.

The graph of a bad loss knows no lines, and a step that is the last has no next one to be watched. What is there is the script itself: the values that
its names held, and its source, which says by which statements they came to hold them. Those are what `instrument.locate.replay` does once more.
"""

from __future__ import annotations

import ast
import copy
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from instrument.callsite import is_users, user_frame
from instrument.tensors import is_bad, is_there

MOST_FRAMES = 6
MOST_NAMES = 2_000  # a notebook's namespace

Wanted = Callable[[Any], bool]
"""Whether what a name holds was made by a statement that is to be done once more."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One running function of the script (or its top level) at one line, with a copy of its names.

    Tensors are held without their graphs: `graded` are the names of those that had one.
    """

    file: str
    line: int
    function: str
    first_line: int
    names: dict[str, Any]
    graded: frozenset[str]
    namespace: dict[str, Any]


def scenes(frame: FrameType | None = None) -> list[Scene]:
    """The script's running functions, innermost first."""
    return [scene_of(each, each.f_lineno) for each in frames(frame)]


def frames(frame: FrameType | None = None) -> Iterator[FrameType]:
    """The script's running frames, innermost first."""
    frame, count = user_frame(frame), 0
    while frame is not None and count < MOST_FRAMES:
        if is_users(frame.f_code.co_filename) and len(frame.f_locals) < MOST_NAMES:
            count += 1
            yield frame
        frame = frame.f_back


def scene_of(frame: FrameType, line: int | None) -> Scene:
    """One frame at one of its lines."""
    code = frame.f_code
    names, graded = _held(frame.f_locals)
    return Scene(code.co_filename, line or code.co_firstlineno, code.co_name, code.co_firstlineno, names, graded, frame.f_globals)


def _held(namespace: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The names with what they hold, tensors without their graphs, and which of them had one."""
    held = dict(namespace)
    graded = frozenset(name for name, value in held.items() if any(x.grad_fn is not None for x in _tensors(value)))
    return {name: value.detach() if isinstance(value, Tensor) and value.grad_fn is not None else value for name, value in held.items()}, graded


def scenes_at_end(error: BaseException | None) -> list[Scene]:
    """Where the script ended with a loss that is not finite in one of its names: in the functions that an exception left, or at its top level."""
    found: list[Scene] = []
    traceback = None if error is None else error.__traceback__
    while traceback is not None:
        if is_users(traceback.tb_frame.f_code.co_filename):
            found.insert(0, scene_of(traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    if not found:
        frame = user_frame()
        main = vars(sys.modules["__main__"])
        file = main.get("__file__")
        if frame is not None and is_users(frame.f_code.co_filename):
            found.append(scene_of(frame, frame.f_lineno))
        elif isinstance(file, str) and is_users(file):
            found.append(_top_level(file, main))
    found = [scene for scene in found if len(scene.names) < MOST_NAMES][:MOST_FRAMES]
    return found if any(_has_bad_loss(scene) for scene in found) else []


def ends_in_nan(file: str) -> bool:
    """Whether a number that the script's top level holds at its end is NaN, or a tensor throughout: a result, not a hole in a table. False if `file`
    is not that script: whatever else the process has computed says nothing of it."""
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) != file:
        return False
    held = [x for x in vars(main).values() if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
    return any(is_there(x) and bool(torch.isnan(x).all()) for x in held)


def _top_level(file: str, namespace: dict[str, Any]) -> Scene:
    """The script's own names after its end, at the last line that gave one of those that went bad a value."""
    names, graded = _held(namespace)
    scene = Scene(file, sys.maxsize, "<module>", 1, names, graded, namespace)
    bad = {name for name in graded if _is_bad_loss(names[name])}
    lines = [s.lineno for s in _simple(_body(scene)) if assigned(s) & bad]
    return replace(scene, line=max(lines, default=1))


def _simple(block: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in block:
        inner = _blocks(statement)
        if any(inner):
            for part in inner:
                yield from _simple(part)
        else:
            yield statement


def _has_bad_loss(scene: Scene) -> bool:
    return any(_is_bad_loss(scene.names[name]) for name in scene.graded)


def _is_bad_loss(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and is_bad(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        yield from (x for x in value if isinstance(x, Tensor))
    elif isinstance(value, dict):
        yield from (x for x in list(value.values())[:64] if isinstance(x, Tensor))


@lru_cache(maxsize=8)
def parsed(file: str) -> ast.Module | None:
    """The source of a file as a tree; None where there is none that can be read."""
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return None


def _body(scene: Scene) -> list[ast.stmt]:
    return _body_of(scene.file, scene.function, scene.first_line)


def function_at(file: str, function: str, first_line: int) -> ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function of this name that begins there, at its first decorator if it has any; the whole file for `<module>`."""
    tree = parsed(file)
    if tree is None or function == "<module>":
        return tree
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function:
            if first_line in (node.lineno, *(d.lineno for d in node.decorator_list)):
                return node
    return None


def _body_of(file: str, function: str, first_line: int) -> list[ast.stmt]:
    tree = function_at(file, function, first_line)
    return [] if tree is None else tree.body


def simple_statements(file: str, function: str, first_line: int) -> list[ast.stmt]:
    """The statements of a function of this name that begins there, or of the top level (`<module>`), those inside loops and branches among them."""
    return list(_simple(_body_of(file, function, first_line)))


def statements_before(scene: Scene) -> list[ast.stmt]:
    """The statements that had run when the scene's line was reached, as far as they follow from the source: of the loops that it stands in, those of
    this round. Those on the line itself are among them."""
    return _before(_body(scene), scene.line)


def _before(block: list[ast.stmt], line: int) -> list[ast.stmt]:
    found: list[ast.stmt] = []
    for statement in block:
        if statement.lineno > line:
            break
        inner = [part for part in _blocks(statement) if part and part[0].lineno <= line <= (part[-1].end_lineno or part[-1].lineno)]
        if inner:
            found += [made for part in inner for made in _inside(statement, _before(part, line))]
        else:
            found.append(statement)
    return found


def _blocks(statement: ast.stmt) -> list[list[ast.stmt]]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return []
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    return blocks + [handler.body for handler in getattr(statement, "handlers", [])]


def _inside(statement: ast.stmt, part: list[ast.stmt]) -> list[ast.stmt]:
    """Autocast and the like stay around what runs in them."""
    if isinstance(statement, ast.With) and part and _is_context(statement):
        return [ast.copy_location(ast.With(items=statement.items, body=part), statement)]
    return part


def _is_context(statement: ast.With) -> bool:
    return all("torch" in ast.unparse(item) or "autocast" in ast.unparse(item) for item in statement.items)


def assigned(statement: ast.stmt) -> set[str]:
    """The names that a statement gives a value to, those inside it among them."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return set()
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def written(statement: ast.stmt) -> set[str]:
    """The names that a statement writes to, whole (`x = ...`) or in part (`x[3] = ...`, `rows.append(...)`), or may write to (`spoil(x)`)."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
        targets = [statement.target]
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        targets = [each for each in call.args if isinstance(each, ast.Name)]  # a function may write into what it is given
        if isinstance(call.func, ast.Attribute) and (call.func.attr in _ADDS or call.func.attr.endswith("_")):
            targets.append(call.func.value)
    else:
        return set()
    return {name for target in targets for name in _roots(target)}


_ADDS = ("append", "extend", "insert", "update", "add", "fill", "put", "setdefault")
"""Methods by which a list, a dictionary, an array or a tensor is given what it holds."""


def _roots(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _roots(element)
    while isinstance(target, ast.Subscript | ast.Starred):
        target = target.value
    if isinstance(target, ast.Name):
        yield target.id


def read(statement: ast.stmt) -> set[str]:
    """The names that a statement reads."""
    loaded = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return loaded | (assigned(statement) if isinstance(statement, ast.AugAssign) else set())


_NOT_AGAIN = ("next", "iter", "open", "input", "exec", "eval", "exit", "quit")
_RANGES = ("range", "zip", "enumerate", "reversed")


def repeatable(statement: ast.stmt) -> ast.stmt | None:
    """What of a statement can be done once more without a trace: it computes, and gives values to names only. None where nothing of it can."""
    if any(isinstance(node, ast.Await | ast.Yield | ast.YieldFrom | ast.While | ast.AsyncFor | ast.AsyncWith) for node in ast.walk(statement)):
        return None
    if any(isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _NOT_AGAIN for node in ast.walk(statement)):
        return None
    for loop in ast.walk(statement):
        if isinstance(loop, ast.For) and not _is_range(loop.iter):
            return None
    made = _Repeatable().visit(copy.deepcopy(statement))
    return None if isinstance(made, ast.Pass) else ast.fix_missing_locations(made)


def _is_range(iterated: ast.expr) -> bool:
    if isinstance(iterated, ast.Call):
        return isinstance(iterated.func, ast.Name) and iterated.func.id in _RANGES
    return isinstance(iterated, ast.Name | ast.Attribute | ast.List | ast.Tuple | ast.Subscript)


class _Repeatable(ast.NodeTransformer):
    """Leaves what computes; an attribute is not set, nothing is returned, raised, deleted or defined."""

    def _nothing(self, node: ast.stmt) -> ast.stmt:
        return ast.copy_location(ast.Pass(), node)

    visit_FunctionDef = visit_ClassDef = visit_Import = visit_ImportFrom = visit_Delete = visit_Global = visit_Nonlocal = _nothing
    visit_Raise = visit_Assert = visit_Return = _nothing

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        call = node.value
        kept = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("append", "extend")
        if kept and isinstance(call.func.value, ast.Name):  # type: ignore[attr-defined]
            return node
        return self._nothing(node)

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        targets = [target for target in node.targets if _is_name(target)]
        return ast.copy_location(ast.Assign(targets, node.value) if targets else ast.Expr(node.value), node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is None:
            return self._nothing(node)
        return self.visit_Assign(ast.copy_location(ast.Assign([node.target], node.value), node))

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        if isinstance(node.target, ast.Name):
            now = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
            return ast.copy_location(ast.Assign([node.target], ast.copy_location(ast.BinOp(now, node.op, node.value), node)), node)
        return node if _is_name(node.target) else ast.copy_location(ast.Expr(node.value), node)


def _is_name(target: ast.expr) -> bool:
    """A name, a place in what a name holds, or a tuple of these."""
    if isinstance(target, ast.Tuple | ast.List):
        return all(map(_is_name, target.elts))
    if isinstance(target, ast.Starred):
        return _is_name(target.value)
    return isinstance(target, ast.Name) or (isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name))


def differentiated(statements: list[ast.stmt]) -> ast.expr | None:
    """The expression on which `backward` was called last."""
    found: ast.expr | None = None
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward":
                value = node.func.value
                within = isinstance(value, ast.Attribute) and value.attr == "autograd" and node.args
                found = node.args[0] if within else value
                if isinstance(found, ast.List | ast.Tuple) and found.elts:
                    found = found.elts[0]
    return found
