"""Numbers that a script carries from step to step and computes from what they were: a velocity, a running mean, multiplicative weights.

Where one of them is found bad, the step that made it so is over, and what uses it is not at fault: the statement that updates it is named.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

import torch
from torch import Tensor

from instrument.events import Site
from instrument.locate.birthplace import parts
from instrument.locate.scene import frames, function_at, parsed
from instrument.runtime import without_function_modes
from instrument.tensors import is_bad, tensors_in

_Matches = Callable[[ast.expr], bool]
"""Whether an expression is the variable that is asked for."""

_COMPUTES = frozenset(
    f"{name}_" for name in ("add", "sub", "mul", "div", "lerp", "addcmul", "addcdiv", "pow", "exp", "sqrt", "square", "baddbmm", "addmm", "addmv")
)


class OwnStates:
    """The states that were found bad, by the lines that update them."""

    def __init__(self) -> None:
        self._known: set[tuple[str, int]] = set()
        self._met: set[tuple[str, int]] = set()

    def add(self, update: Site) -> None:
        """A state that this line updates was met with bad numbers in it."""
        self._known.add((update.file, update.line))

    def meet(self, update: Site) -> None:
        """It is the cause, so it is to be mended."""
        self._met |= {(update.file, update.line)} & self._known

    def mend(self) -> int:
        """Set what is not finite to 0 in what the script's variables hold now that these lines update. Returns how many numbers.

        Written through `.data`: a graph that is about to be differentiated may hold them, and autograd is not to see a write.
        """
        mended = 0
        with torch.no_grad(), without_function_modes():
            for value in _carried() if self._met else ():
                known = update_of_state(value)
                if known is not None and (known[1].file, known[1].line) in self._met:
                    bad = ~torch.isfinite(value)
                    mended += int(bad.sum())
                    value.data.masked_fill_(bad, 0.0)
        self._met.clear()
        return mended


def zero_states_like(leaves: Iterable[Tensor]) -> int:
    """Set to 0 what is not finite in the tensors of a leaf's shape and type that the script's variables hold: what a rule of its own remembers of the
    leaf (a velocity). Returns how many numbers."""
    shapes = {(leaf.shape, leaf.dtype) for leaf in leaves if leaf.dim()}
    mended = 0
    with torch.no_grad(), without_function_modes():
        for value in _carried():
            if (value.shape, value.dtype) in shapes and value.is_leaf:
                bad = ~torch.isfinite(value)
                mended += int(bad.sum())
                value.masked_fill_(bad, 0.0)
    return mended


def _carried() -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for frame in frames():
        for value in list(frame.f_locals.values()):
            for held in tensors_in([value, *(item for _, item in _attributes(value))]):
                if not held.requires_grad and is_bad(held):
                    found[id(held)] = held
    return list(found.values())


def update_of_state(x: Tensor) -> tuple[str, Site] | None:
    """The name of the script's variable that holds `x` itself, and the statement of a loop that computes it from what it was; None for any other."""
    for frame in frames():
        code = frame.f_code
        for name, value in list(frame.f_locals.items()):
            if value is x:
                tree = function_at(code.co_filename, code.co_name, code.co_firstlineno)
                found = None if tree is None else _last(_in_loops(tree), _is_name(name))
                if found is not None:
                    return name, _site(frame, found)
            attribute = next((key for key, held in _attributes(value) if held is x), None)
            if attribute is not None:
                found = _last(_in_methods(code.co_filename), _is_attribute(attribute))
                if found is not None:
                    return f"{name}.{attribute}", _site(frame, found)
    return None


def _attributes(value: object) -> list[tuple[str, object]]:
    own = getattr(value, "__dict__", None)
    return list(own.items()) if isinstance(own, dict) and parts(value) else []


def _site(frame: FrameType, statement: ast.stmt) -> Site:
    file = frame.f_code.co_filename
    return Site(file, statement.lineno, frame.f_code.co_name, linecache.getline(file, statement.lineno).strip() or None)


def _in_loops(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a function, not of those inside it, that run again and again."""
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, looped = pending.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                continue
            if looped and isinstance(child, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr):
                yield child
            pending.append((child, looped or isinstance(child, ast.For | ast.While)))


def _in_methods(file: str) -> Iterator[ast.stmt]:
    """The statements of methods other than the one that makes an object: what is kept there is kept from call to call."""
    tree = parsed(file)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and method.name != "__init__":
                    yield from (s for s in ast.walk(method) if isinstance(s, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr))


def _last(statements: Iterator[ast.stmt], matches: _Matches) -> ast.stmt | None:
    return max((s for s in statements if _updates(s, matches)), key=lambda s: s.lineno, default=None)


def _updates(statement: ast.stmt, matches: _Matches) -> bool:
    """Whether a statement computes the variable from what it was: `m = b * m + x`, `m += x`, `m.mul_(b).add_(x)`."""
    if isinstance(statement, ast.AugAssign):
        return matches(_whole(statement.target))
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        value = statement.value
        computes = value is not None and any(isinstance(node, ast.BinOp | ast.Call) for node in ast.walk(value))
        return computes and any(matches(_whole(t)) for t in targets) and any(isinstance(n, ast.expr) and matches(n) for n in ast.walk(value))  # type: ignore[arg-type]
    call, computes = getattr(statement, "value", None), False
    while isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        computes = computes or call.func.attr in _COMPUTES
        call = call.func.value
    return computes and isinstance(call, ast.expr) and matches(_whole(call))


def _whole(target: ast.expr) -> ast.expr:
    """What a part is written into: `m` of `m[3]` and of `m.data`."""
    while isinstance(target, ast.Subscript) or (isinstance(target, ast.Attribute) and target.attr == "data"):
        target = target.value
    return target


def _is_name(name: str) -> _Matches:
    return lambda expression: isinstance(expression, ast.Name) and expression.id == name


def _is_attribute(name: str) -> _Matches:
    return lambda expression: isinstance(expression, ast.Attribute) and expression.attr == name and isinstance(expression.value, ast.Name)
