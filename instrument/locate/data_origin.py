"""Where data with a hole came from: the script's variable that holds the table a bad batch was taken from, and the statement that gave it its value.

Read from the running frames and their source once a step has failed; nothing is remembered for it in a healthy run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

from instrument.locate.made_data import is_taken_from
from instrument.locate.origin import named_tensors
from instrument.locate.scene import simple_statements
from instrument.runtime import is_plain, without_function_modes
from latent_drift.numerics.finite import is_finite


@dataclass(frozen=True, slots=True)
class DataOrigin:
    """The statement that gave a variable its value. `table` is what it holds where that is more than the bad tensor itself."""

    name: str
    file: str
    line: int
    source: str
    table: Tensor | None


def data_origin(x: Tensor) -> DataOrigin | None:
    """The largest variable of the script that holds the numbers of `x`, and the last statement that wrote it; None where there is none."""
    found: list[tuple[int, str, Tensor, FrameType]] = []
    with torch.no_grad(), without_function_modes():
        for name, value, frame in named_tensors():
            if value.numel() >= x.numel() and is_plain(value) and not value.requires_grad and not is_finite(value) and is_taken_from(x, value):
                found.append((value.numel(), name, value, frame))
    for _, name, value, frame in sorted(found, key=lambda item: -item[0]):
        statement = _writing(name, frame)
        if statement is not None:
            file = frame.f_code.co_filename
            return DataOrigin(name, file, statement.lineno, _first_line(statement), value if value.shape != x.shape else None)
    return None


def _writing(name: str, frame: FrameType) -> ast.stmt | None:
    """The last statement before the running one that gives `name`, or a part of what it holds, a value; the last of all where none is before."""
    code = frame.f_code
    writing = [s for s in simple_statements(code.co_filename, code.co_name, code.co_firstlineno) if name in _written(s)]
    before = [s for s in writing if s.lineno < (frame.f_lineno or 0)]
    return max(before or writing, key=lambda s: s.lineno, default=None)


def _written(statement: ast.stmt) -> set[str]:
    """The names that a statement writes to, whole (`x = ...`) or in part (`x[3] = ...`)."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
        targets = [statement.target]
    else:
        return set()
    return {name for target in targets for name in _roots(target)}


def _roots(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _roots(element)
    while isinstance(target, ast.Subscript | ast.Starred):
        target = target.value
    if isinstance(target, ast.Name):
        yield target.id


def _first_line(statement: ast.stmt) -> str:
    return ast.unparse(statement).partition("\n")[0]
