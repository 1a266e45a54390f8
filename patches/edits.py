"""Edits of a file's text, and their application: byte-exact everywhere else.

An edit replaces one node's text or adds whole lines beside a statement. A fix is a group of edits that
are applied together or not at all. Of two fixes that touch the same text the outer one is applied and
the other waits for the next pass, which sees the new text.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import libcst as cst

from patches.source import Source


class Unfixable(Exception):
    """A fix cannot be written at this place (nowhere to put a line); the finding is then only shown."""


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """Writes `text`, an expression or for a statement node a statement, in place of `node`."""

    node: cst.CSTNode
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class AddLines:
    """Puts `lines` on lines of their own beside the statement around `node`, at its indentation."""

    node: cst.CSTNode
    lines: tuple[str, ...]
    where: Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class AddImport:
    """Adds an import line, unless the file has it, after the file's first import of torch."""

    line: str


Edit = Replace | AddLines | AddImport


@dataclass(frozen=True, slots=True, order=True)
class Splice:
    """Offsets into the text and what to put there."""

    start: int
    end: int
    text: str


def splices(source: Source, edits: Iterable[Edit]) -> list[Splice]:
    """The text changes that the edits of one fix come to, in order.

    Raises:
        Unfixable: an added line has no place, or two edits of the fix overlap.
    """
    found: list[Splice] = []
    for edit in edits:
        match edit:
            case Replace(node, text):
                found.extend(_replacement(source, node, text))
            case AddLines(node, lines, where):
                found.append(_added_lines(source, node, lines, where))
            case AddImport(line):
                added = _added_import(source, line)
                if added is not None:
                    found.append(added)
    found = sorted(dict.fromkeys(found))
    for left, right in pairwise(found):
        if right.start < left.end:
            raise Unfixable("two edits of one fix overlap")
    return found


def apply_fixes(text: str, fixes: Sequence[Sequence[Splice]]) -> tuple[str, list[int]]:
    """The text after the fixes that do not overlap, larger ones first, and the indices of those applied."""

    def extent(index: int) -> tuple[int, int]:
        replaced = [s for s in fixes[index] if s.end > s.start]
        return -sum(s.end - s.start for s in replaced), min((s.start for s in fixes[index]), default=0)

    chosen: list[int] = []
    taken: list[Splice] = []
    for index in sorted(range(len(fixes)), key=extent):
        wanted = [s for s in fixes[index] if s not in taken]
        if wanted and not any(_clash(s, t) for s in wanted for t in taken):
            taken.extend(wanted)
            chosen.append(index)
        elif not wanted and fixes[index]:
            chosen.append(index)
    pieces: list[str] = []
    position = 0
    for splice in sorted(taken):
        pieces.extend((text[position : splice.start], splice.text))
        position = splice.end
    return "".join((*pieces, text[position:])), sorted(chosen)


def _clash(left: Splice, right: Splice) -> bool:
    if left.start == left.end and right.start == right.end:
        return False  # two insertions, also at one place
    return left.start < right.end and right.start < left.end


def newline_of(source: Source) -> str:
    """The file's own line ending."""
    return source.module.default_newline


def _replacement(source: Source, node: cst.CSTNode, text: str) -> list[Splice]:
    start, end = source.span(node)
    old = source.text[start:end]
    if isinstance(node, cst.BaseExpression) and _needs_parentheses(source, node, text):
        text = f"({text})"
    text = text.replace("\r\n", "\n").replace("\n", newline_of(source))
    changes = [Splice(start, end, text)]
    lost = _comments(old)
    for comment in _comments(text):
        if comment in lost:
            lost.remove(comment)
    if lost:
        changes.append(_added_lines(source, node, tuple(lost), "before"))
    return changes


def _comments(text: str) -> list[str]:
    if "#" not in text:
        return []
    try:
        return [t.string for t in tokenize.generate_tokens(io.StringIO(f"({text}\n)").readline) if t.type == tokenize.COMMENT]
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return []


_LOOSE_PARENTS = (cst.Arg, cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Return, cst.Index, cst.Element, cst.DictElement, cst.Expr, cst.Slice)


def _needs_parentheses(source: Source, node: cst.BaseExpression, text: str) -> bool:
    if node.lpar:
        return False
    try:
        new = cst.parse_expression(text, config=source.module.config_for_parsing)
    except cst.ParserSyntaxError:  # it spans lines and was held together by the parentheses it stood in
        return True
    if new.lpar or not isinstance(new, (cst.BinaryOperation, cst.UnaryOperation, cst.Comparison, cst.BooleanOperation, cst.IfExp, cst.Lambda)):
        return False
    parent = source.parents.get(node)
    if isinstance(parent, _LOOSE_PARENTS):
        return False
    if isinstance(parent, cst.BinaryOperation) and isinstance(new, cst.BinaryOperation):
        outer, inner = _precedence(parent.operator), _precedence(new.operator)
        return inner < outer or (inner == outer and (node is parent.right or inner == 3))
    return True


def _precedence(operator: cst.BaseBinaryOp) -> int:
    if isinstance(operator, (cst.Add, cst.Subtract)):
        return 1
    if isinstance(operator, (cst.Multiply, cst.Divide, cst.FloorDivide, cst.Modulo, cst.MatrixMultiply)):
        return 2
    return 3 if isinstance(operator, cst.Power) else 0


def _added_lines(source: Source, node: cst.CSTNode, lines: Sequence[str], where: Literal["before", "after"]) -> Splice:
    statement = source.statement_of(node)
    parent = source.parents.get(statement) if statement is not None else None
    if statement is None or not isinstance(parent, (cst.IndentedBlock, cst.Module)):
        raise Unfixable("there is no line of its own beside this statement")
    newline = newline_of(source)
    start, end = source.span(statement)
    line_start = source.line_starts[source.location(start)[0] - 1]
    indent = source.text[line_start:start]
    if indent.strip():
        raise Unfixable("the statement does not start its line")
    if where == "before":
        return Splice(line_start, line_start, "".join(f"{indent}{line}{newline}" if line else newline for line in lines))
    text = source.text
    while end > start and text[end - 1] in " \t\r\n":
        end -= 1
    line = source.location(end)[0]
    if line < len(source.line_starts):
        at = source.line_starts[line]
        return Splice(at, at, "".join(f"{indent}{line}{newline}" if line else newline for line in lines))
    return Splice(len(text), len(text), "".join(f"{newline}{indent}{line}" if line else newline for line in lines))


def _added_import(source: Source, line: str) -> Splice | None:
    """After the first top-level import of torch, else after the last of the leading imports, else after the docstring."""
    anchor: cst.CSTNode | None = None
    torch_anchor: cst.CSTNode | None = None
    for statement in source.module.body:
        if isinstance(statement, cst.SimpleStatementLine):
            small = statement.body[0]
            if isinstance(small, (cst.Import, cst.ImportFrom)):
                code = source.code(small)
                if code.strip() == line:
                    return None
                anchor = statement if torch_anchor is None else anchor
                if torch_anchor is None and "torch" in code:
                    torch_anchor = statement
            elif anchor is None and isinstance(small, cst.Expr) and isinstance(small.value, (cst.SimpleString, cst.ConcatenatedString)):
                anchor = statement
    anchor = torch_anchor or anchor
    if anchor is not None:
        return _added_lines(source, anchor, (line,), "after")
    body = source.module.body
    if body:
        return _added_lines(source, body[0], (line,), "before")
    return None
