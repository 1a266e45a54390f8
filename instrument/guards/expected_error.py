"""Whether the script is prepared for an error that an operation raises: `try: cholesky(K + jitter * I)` with a handler that goes on, or a test that
wants it. Then the script has its own remedy, and neither a repair nor an event is asked for.

A handler that raises, leaves the loop or ends the program reports the failure; it does not mend it.
"""

from __future__ import annotations

import ast
import sys
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

from instrument.callsite import is_ours
from instrument.locate.scene import parsed

MOST_FRAMES = 3  # from the call outwards: a helper that factorizes, and its helper
_WANT_IT = frozenset({"suppress", "raises", "assertRaises", "assertRaisesRegex"})
_ENDS = (ast.Raise, ast.Break)


def is_expected(error: BaseException) -> bool:
    """Whether one of the nearest functions that called the failing operation goes on after such an error."""
    frame: FrameType | None = sys._getframe(1)
    looked = 0
    while frame is not None and looked < MOST_FRAMES:
        code = frame.f_code
        if not is_ours(code.co_filename) and str(frame.f_globals.get("__name__")).partition(".")[0] != "torch":
            looked += 1
            if any(_catches(each, error, frame) for each in _around(code, frame.f_lineno)):
                return True
        frame = frame.f_back
    return False


@lru_cache(maxsize=256)
def _around(code: CodeType, line: int) -> tuple[ast.Try | ast.With, ...]:
    """The blocks of a function that a line stands in directly, not in a loop of theirs, and that may keep an error from going further."""
    tree = parsed(code.co_filename)
    found: list[ast.Try | ast.With] = []
    if tree is not None:
        _descend(tree.body, line, found)
    return tuple(found)


def _descend(block: list[ast.stmt], line: int, found: list[ast.Try | ast.With]) -> None:
    for statement in block:
        if not statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            continue
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.For | ast.AsyncFor | ast.While):
            found.clear()  # what is around a function, or around a whole loop, does not mend one call in it
        if isinstance(statement, ast.With) or (isinstance(statement, ast.Try) and _is_in(statement.body, line)):
            found.append(statement)
        for name in ("body", "orelse", "finalbody"):
            _descend(getattr(statement, name, []), line, found)
        for handler in getattr(statement, "handlers", []):
            _descend(handler.body, line, found)


def _is_in(block: list[ast.stmt], line: int) -> bool:
    return bool(block) and block[0].lineno <= line <= (block[-1].end_lineno or block[-1].lineno)


def _catches(block: ast.Try | ast.With, error: BaseException, frame: FrameType) -> bool:
    if isinstance(block, ast.With):
        calls = [item.context_expr for item in block.items if isinstance(item.context_expr, ast.Call)]
        return any(_name(call.func) in _WANT_IT and any(_is_of(kind, error, frame) for kind in call.args) for call in calls)
    handler = next((h for h in block.handlers if h.type is None or _is_of(h.type, error, frame)), None)
    return handler is not None and not any(_ends(node) for statement in handler.body for node in ast.walk(statement))


def _ends(node: ast.AST) -> bool:
    return isinstance(node, _ENDS) or (isinstance(node, ast.Call) and _name(node.func) in ("exit", "_exit", "quit", "fail"))


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""


def _is_of(kind: ast.expr, error: BaseException, frame: FrameType) -> bool:
    """Whether an expression names a class of the error, or several of them."""
    if isinstance(kind, ast.Tuple):
        return any(_is_of(each, error, frame) for each in kind.elts)
    value = _value(kind, frame)
    classes = value if isinstance(value, tuple) else (value,)
    return any(isinstance(cls, type) and isinstance(error, cls) for cls in classes)


def _value(expression: ast.expr, frame: FrameType) -> Any:
    """What a name, or an attribute of one, stands for in a frame; None for anything else."""
    if isinstance(expression, ast.Attribute):
        return getattr(_value(expression.value, frame), expression.attr, None)
    if not isinstance(expression, ast.Name):
        return None
    return frame.f_locals.get(expression.id, frame.f_globals.get(expression.id, frame.f_builtins.get(expression.id)))
