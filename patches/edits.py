"""Edits of a file's text, and their application: byte-exact everywhere else.

An edit replaces one node's text or adds whole lines beside a statement. A fix is a group of edits that
are applied together or not at all. Of two fixes that touch the same text the outer one is applied and
the other waits for the next pass, which sees the new text.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import libcst as cst

from patches.names import is_type_checking
from patches.source import Source, dotted_name


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
    """Adds an import line, unless the file has it, after the import of torch that the fixed place sees."""

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
        Unfixable: an added line has no place, two edits of the fix overlap, or the place does not bear the new text.
    """
    found: list[Splice] = []
    edits = tuple(edits)
    at = next((edit.node for edit in edits if not isinstance(edit, AddImport)), None)
    for edit in edits:
        match edit:
            case Replace(node, text):
                _check_place(source, node, text)
                found.extend(_replacement(source, node, text))
            case AddLines(node, lines, where):
                found.append(_added_lines(source, node, lines, where))
            case AddImport(line):
                added = _added_import(source, line, at)
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
    taken: list[Splice] = []  # in order of their offsets, and disjoint
    known: set[Splice] = set()
    for index in sorted(range(len(fixes)), key=extent):
        wanted = [s for s in fixes[index] if s not in known]
        if wanted and not any(_clashes(s, taken) for s in wanted):
            for splice in wanted:
                insort(taken, splice)
            known.update(wanted)
            chosen.append(index)
        elif not wanted and fixes[index]:
            chosen.append(index)
    pieces: list[str] = []
    position = 0
    for splice in sorted(taken):
        pieces.extend((text[position : splice.start], splice.text))
        position = splice.end
    return "".join((*pieces, text[position:])), sorted(chosen)


def _clashes(splice: Splice, taken: Sequence[Splice]) -> bool:
    """Whether a splice shares text with one of those taken; two insertions never do, also at one place."""
    position = bisect_left(taken, splice)
    while position > 0 and taken[position - 1].end >= splice.start:
        position -= 1
        if taken[position].start < taken[position].end:
            break
    for other in taken[position:]:
        if other.start > splice.end:
            return False
        if (splice.start < splice.end or other.start < other.end) and splice.start < other.end and other.start < splice.end:
            return True
    return False


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


def _is_atomic(text: str) -> bool:
    """Whether the text is a call, a name, a subscript: what needs no parentheses anywhere. CPython's parser is the cheap way to know."""
    try:
        return isinstance(ast.parse(text, mode="eval").body, (ast.Call, ast.Name, ast.Attribute, ast.Subscript))
    except (SyntaxError, ValueError):
        return False


_LOOSE_PARENTS = (cst.Arg, cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Return, cst.Index, cst.Element, cst.DictElement, cst.Expr, cst.Slice)


def _needs_parentheses(source: Source, node: cst.BaseExpression, text: str) -> bool:
    if node.lpar or _is_atomic(text):
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


def _check_place(source: Source, node: cst.CSTNode, text: str) -> None:
    """Raises Unfixable where the text would be right and its place would not bear it."""
    if any(isinstance(ancestor, cst.FormattedStringExpression) and ancestor.equal is not None for ancestor in source.ancestors(node)):
        raise Unfixable("an f-string shows the expression's own text: f'{...=}'")
    if "finfo(" in text and is_scripted(source, node):
        raise Unfixable("TorchScript has no torch.finfo")


_SCRIPTING = re.compile(r"(^|\.)(jit\.)?(script|script_method|script_if_tracing|jit_script)$")


def is_scripted(source: Source, node: cst.CSTNode) -> bool:
    """Whether the code around `node` is compiled by TorchScript: by a decorator, its class, or a call of torch.jit.script in this file."""
    for owner in source.ancestors(node):
        if isinstance(owner, (cst.FunctionDef, cst.ClassDef)):
            written = [d.decorator for d in owner.decorators]
            called = [d.func if isinstance(d, cst.Call) else d for d in written]
            if any(_SCRIPTING.search(dotted_name(callee) or "") for callee in called):
                return True
            if isinstance(owner, cst.ClassDef) and any((dotted_name(base.value) or "").endswith("ScriptModule") for base in owner.bases):
                return True
            if re.search(rf"\bscript\(\s*{re.escape(owner.name.value)}\b", source.text):
                return True
    return False


def _added_import(source: Source, line: str, at: cst.CSTNode | None) -> Splice | None:
    """Beside the import of torch that runs before the fixed place: the file's first one, one inside a top-level block, or the function's own.

    Raises:
        Unfixable: nothing there imports torch, so that a new import would be the only one.
    """
    beside: list[cst.CSTNode] = []
    inside: list[cst.CSTNode] = []
    for node in source.nodes(cst.Import, cst.ImportFrom):
        code = source.code(node).strip()
        statement = source.parents.get(node)
        if not isinstance(statement, cst.SimpleStatementLine) or "torch" not in code:
            continue
        branches = source.branches_of(node)
        if source.enclosing(node, cst.FunctionDef, cst.ClassDef) is None:
            if not any(is_type_checking(owner) and name == "body" for owner, name in branches) and (
                not branches or all(name == "body" for _, name in branches)
            ):
                if code == line and not branches:
                    return None
                (inside if branches else beside).append(statement)
        elif at is not None and source.function_of(node) in {*source.ancestors(at)} and branches == source.branches_of(at)[: len(branches)]:
            if source.order[node] < source.order[at]:
                inside.append(statement)
    of_torch = [s for s in beside if _imports_torch(s)] or beside or [s for s in inside if _imports_torch(s)]
    if not of_torch:
        raise Unfixable("nothing here imports torch")
    return _added_lines(
        source, min(of_torch, key=source.order.__getitem__) if beside else max(of_torch, key=source.order.__getitem__), (line,), "after"
    )


def _imports_torch(statement: cst.CSTNode) -> bool:
    for small in getattr(statement, "body", ()):
        modules = (
            [alias.name for alias in small.names] if isinstance(small, cst.Import) else [small.module] if isinstance(small, cst.ImportFrom) else []
        )
        if any((dotted_name(module) or "").split(".")[0] == "torch" for module in modules):
            return True
    return False
