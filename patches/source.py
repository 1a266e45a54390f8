"""One parsed file and its index: what every rule reads, made once per file.

The tree is LibCST's; it is walked once. Positions cost more than parsing does, so they are computed
only when a file has a finding, by generating the code once more and noting where each node starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import libcst as cst
from libcst._nodes.internal import CodegenState

from patches.settings import Settings
from patches.star_imports import EXPORTED

_TRIVIA = ("whitespace", "lpar", "rpar", "leading", "trailing", "semicolon", "comma", "header", "footer", "lbracket", "rbracket", "lines_")

Branch = tuple[cst.CSTNode, str]
"""A block that may or may not run: its owner and which of the owner's blocks it is ("body", "else", ...)."""

BindingKind = Literal["assign", "augment", "parameter", "iterate", "with", "import", "function", "class", "unknown"]
ScopeKind = Literal["module", "class", "function", "lambda", "comprehension"]


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """One place where a name gets a value.

    `value` is the expression it comes from (for `augment` the right-hand side, for `iterate` the
    iterable, for `with` the context manager); `index` is the position in a tuple target, None when
    the target is the name alone and -1 when the position is not fixed (`a, *b = ...`).
    """

    name: str
    kind: BindingKind
    node: cst.CSTNode
    order: int
    branches: tuple[Branch, ...]
    value: cst.BaseExpression | None = None
    index: int | None = None
    target: str = ""  # the imported qualified name


@dataclass(slots=True, eq=False)
class Scope:
    """A module, class, function, lambda or comprehension, and what it binds."""

    node: cst.CSTNode
    kind: ScopeKind
    parent: Scope | None
    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    outer_names: set[str] = field(default_factory=set)  # global and nonlocal

    def lookup(self, name: str) -> Scope | None:
        """The scope whose binding a use of `name` here sees (class bodies are invisible from inside functions)."""
        scope: Scope | None = self
        first = True
        while scope is not None:
            if (first or scope.kind != "class") and name in scope.bindings and name not in scope.outer_names:
                return scope
            scope, first = scope.parent, False
        return None


@cache
def _child_fields(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    names = [f.name for f in dataclasses.fields(kind) if not f.name.startswith(_TRIVIA)]
    if kind in (cst.Assign, cst.AnnAssign, cst.AugAssign, cst.NamedExpr):  # evaluated before it is bound
        names.sort(key=lambda name: name in ("target", "targets"))
    elif kind in (cst.For, cst.CompFor):
        names.sort(key=lambda name: {"iter": 0, "target": 1}.get(name, 2))
    elif kind in (cst.ListComp, cst.SetComp, cst.GeneratorExp, cst.DictComp):
        names.sort(key=lambda name: name != "for_in")
    return tuple(names)


_BRANCHING: dict[type[cst.CSTNode], tuple[str, ...]] = {
    cst.If: ("body", "orelse"),
    cst.For: ("body", "orelse"),
    cst.While: ("body", "orelse"),
    cst.Try: ("body", "handlers", "orelse"),
    cst.TryStar: ("body", "handlers", "orelse"),
    cst.Match: ("cases",),
}
_SCOPES: dict[type[cst.CSTNode], ScopeKind] = {
    cst.FunctionDef: "function",
    cst.ClassDef: "class",
    cst.Lambda: "lambda",
    cst.ListComp: "comprehension",
    cst.SetComp: "comprehension",
    cst.GeneratorExp: "comprehension",
    cst.DictComp: "comprehension",
}
_COLLECTED = frozenset(
    {
        *(cst.Assign, cst.AnnAssign, cst.AugAssign, cst.NamedExpr, cst.Param, cst.Import, cst.ImportFrom, cst.AsName),
        *(cst.Global, cst.Nonlocal, cst.Del, cst.MatchAs, cst.MatchStar),
    }
)


@cache
def _traits(kind: type[cst.CSTNode]) -> tuple[tuple[str, ...], tuple[str, ...], ScopeKind | None, bool]:
    """Fields to walk, which of them are branches, the kind of scope it opens, and whether it binds names.

    One look-up for each node: isinstance on LibCST's classes goes through abc and costs more than the rest of the walk.
    """
    return _child_fields(kind), _BRANCHING.get(kind, ()), _SCOPES.get(kind), kind in _COLLECTED


@cache
def _is_node_type(kind: type) -> bool:
    return issubclass(kind, cst.CSTNode)


@cache
def _is_statement(kind: type) -> bool:
    return issubclass(kind, (cst.SimpleStatementLine, cst.SimpleStatementSuite, cst.BaseCompoundStatement))


class _Indexer:
    """The walk: parents, order, scopes and bindings."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.count = 0

    def visit(self, node: cst.CSTNode, parent: cst.CSTNode | None, scope: Scope, branches: tuple[Branch, ...]) -> None:
        source = self.source
        self.count += 1
        if parent is not None:
            source.parents[node] = parent
        source.order[node] = self.count
        kind = type(node)
        source.by_type.setdefault(kind, []).append(node)
        fields, branching, scope_kind, collects = _traits(kind)
        if scope_kind is not None:
            name = getattr(node, "name", None)
            if scope_kind in ("function", "class") and type(name) is cst.Name:
                self._bind(scope, name.value, scope_kind, node, branches)
            scope = self._new_scope(node, scope_kind, scope)
        for field_name in fields:
            value = getattr(node, field_name)
            if value is None:
                continue
            inner = (*branches, (node, field_name)) if field_name in branching else branches
            if _is_node_type(value.__class__):
                self.visit(value, node, scope, inner)
            elif value.__class__ in (list, tuple):
                for position, child in enumerate(value):
                    if _is_node_type(child.__class__):
                        branch = (*branches, (node, f"{field_name}{position}")) if field_name in ("handlers", "cases") else inner
                        self.visit(child, node, scope, branch)
            if field_name == "target" and kind in (cst.For, cst.CompFor):  # bound before the body is walked
                self._bind_target(scope, value, "iterate", node, branches, node.iter)  # type: ignore[attr-defined]
        if collects:
            self._collect(node, scope, branches)

    def _new_scope(self, node: cst.CSTNode, kind: ScopeKind, parent: Scope) -> Scope:
        scope = Scope(node, kind, parent)
        self.source.scopes[node] = scope
        return scope

    def _bind(
        self,
        scope: Scope,
        name: str,
        kind: BindingKind,
        node: cst.CSTNode,
        branches: tuple[Branch, ...],
        value: cst.BaseExpression | None = None,
        index: int | None = None,
        target: str = "",
    ) -> None:
        self.count += 1
        binding = Binding(name, kind, node, self.count, branches, value, index, target)
        if name in scope.outer_names:  # `global x; x = ...` rebinds elsewhere: that name is then unknown there
            outer = scope.parent
            while outer is not None and name not in outer.bindings:
                outer = outer.parent
            binding = dataclasses.replace(binding, kind="unknown", value=None, branches=())
            scope = outer or self.source.root
        scope.bindings.setdefault(name, []).append(binding)

    def _bind_target(
        self,
        scope: Scope,
        target: cst.CSTNode,
        kind: BindingKind,
        node: cst.CSTNode,
        branches: tuple[Branch, ...],
        value: cst.BaseExpression | None,
        index: int | None = None,
    ) -> None:
        if isinstance(target, cst.Name):
            self._bind(scope, target.value, kind, node, branches, value, index)
        elif isinstance(target, (cst.Tuple, cst.List)):
            starred = any(isinstance(element, cst.StarredElement) for element in target.elements)
            for position, element in enumerate(target.elements):
                self._bind_target(scope, element.value, kind, node, branches, value, -1 if starred or index is not None else position)
        elif isinstance(target, cst.Attribute):
            self.source.attribute_writes.append((target, Binding(target.attr.value, kind, node, self.count, branches, value, index)))

    def _collect(self, node: cst.CSTNode, scope: Scope, branches: tuple[Branch, ...]) -> None:
        """Note what `node`, all of whose children have been visited, binds."""
        if isinstance(node, cst.Assign):
            for assign_target in node.targets:
                self._bind_target(scope, assign_target.target, "assign", node, branches, node.value)
        elif isinstance(node, cst.AnnAssign):
            self._bind_target(scope, node.target, "assign" if node.value is not None else "unknown", node, branches, node.value)
        elif isinstance(node, cst.AugAssign):
            self._bind_target(scope, node.target, "augment", node, branches, node.value)
        elif isinstance(node, cst.NamedExpr):
            self._bind_target(self._function_scope(scope), node.target, "assign", node, branches, node.value)
        elif isinstance(node, cst.Param):
            if isinstance(node.name, cst.Name):
                self._bind(scope, node.name.value, "parameter", node, ())
        elif isinstance(node, (cst.Import, cst.ImportFrom)):
            self._imports(node, scope, branches)
        elif isinstance(node, cst.AsName):
            owner = self.source.parents.get(node)
            if isinstance(owner, cst.WithItem):
                self._bind_target(scope, node.name, "with", node, branches, owner.item)
            elif not isinstance(owner, cst.ImportAlias):
                self._bind_target(scope, node.name, "unknown", node, branches, None)
        elif isinstance(node, (cst.Global, cst.Nonlocal)):
            scope.outer_names.update(item.name.value for item in node.names)
        elif isinstance(node, cst.Del):
            self._bind_target(scope, node.target, "unknown", node, branches, None)
        elif isinstance(node, (cst.MatchAs, cst.MatchStar)) and node.name is not None:
            self._bind(scope, node.name.value, "unknown", node, branches)

    @staticmethod
    def _function_scope(scope: Scope) -> Scope:
        while scope.kind == "comprehension" and scope.parent is not None:
            scope = scope.parent
        return scope

    def _imports(self, node: cst.Import | cst.ImportFrom, scope: Scope, branches: tuple[Branch, ...]) -> None:
        if isinstance(node, cst.Import):
            for alias in node.names:
                dotted = dotted_name(alias.name) or ""
                if alias.asname is not None and isinstance(alias.asname.name, cst.Name):
                    self._bind(scope, alias.asname.name.value, "import", node, branches, target=dotted)
                else:  # `import torch.nn` binds `torch`
                    head = dotted.split(".")[0]
                    self._bind(scope, head, "import", node, branches, target=head)
            return
        prefix = "." * len(node.relative) + (dotted_name(node.module) or "" if node.module is not None else "")
        if isinstance(node.names, cst.ImportStar):
            self._star_import(node, prefix, scope, branches)
            return
        for alias in node.names:
            name = alias.name.value if isinstance(alias.name, cst.Name) else ""
            local = alias.asname.name.value if alias.asname is not None and isinstance(alias.asname.name, cst.Name) else name
            self._bind(scope, local, "import", node, branches, target=f"{prefix}.{name}" if prefix else name)

    def _star_import(self, node: cst.ImportFrom, module: str, scope: Scope, branches: tuple[Branch, ...]) -> None:
        """`from torch import *` binds what torch exports; one of a module that is not known may rebind any of that."""
        self.source.star_imports.append(module)
        for name in EXPORTED.get(module, ()):
            if all(b.kind == "import" and b.branches == branches for b in scope.bindings.get(name, ())):
                scope.bindings.pop(name, None)  # the later import wins
            self._bind(scope, name, "import", node, branches, target=f"{module}.{name}")
        if module not in EXPORTED:
            for name, bindings in scope.bindings.items():
                if any(isinstance(b.node, cst.ImportFrom) and isinstance(b.node.names, cst.ImportStar) for b in bindings):
                    bindings.append(Binding(name, "unknown", node, self.count, branches))


class _Recorder(CodegenState):
    """Generates the code again and notes each node's start and end offset, without its parentheses."""

    def __init__(self, default_indent: str, default_newline: str) -> None:
        super().__init__(default_indent, default_newline)
        self.offset = 0
        self.spans: dict[cst.CSTNode, tuple[int, int]] = {}
        self._starts: list[int] = []

    def add_indent_tokens(self) -> None:
        for token in self.indent_tokens:
            self.add_token(token)

    def add_token(self, value: str) -> None:
        self.tokens.append(value)
        self.offset += len(value)

    def before_codegen(self, node: cst.CSTNode) -> None:
        self._starts.append(self.offset)

    def after_codegen(self, node: cst.CSTNode) -> None:
        start = self._starts.pop()
        if node not in self.spans:
            self.spans[node] = (start, self.offset)

    @contextmanager
    def record_syntactic_position(
        self, node: cst.CSTNode, *, start_node: cst.CSTNode | None = None, end_node: cst.CSTNode | None = None
    ) -> Iterator[None]:
        start = self.offset
        try:
            yield
        finally:
            first = self.spans[start_node][0] if start_node is not None else start
            last = self.spans[end_node][1] if end_node is not None else self.offset
            self.spans[node] = (first, last)


class Source:
    """A parsed file: tree, parents, evaluation order, scopes, bindings and, lazily, positions.

    Args:
        text: the file's text; line endings are kept as they are.
        path: where it came from, as it is to be reported.
        settings: what the code will run in (dtype, torch version, bound).

    Raises:
        libcst.ParserSyntaxError: the text is not Python.
    """

    def __init__(self, text: str, path: str = "<string>", settings: Settings | None = None) -> None:
        self.text = text
        self.path = path
        self.settings = settings or Settings()
        self.module = cst.parse_module(text)
        self.parents: dict[cst.CSTNode, cst.CSTNode] = {}
        self.order: dict[cst.CSTNode, int] = {}
        self.by_type: dict[type[cst.CSTNode], list[cst.CSTNode]] = {}
        self.scopes: dict[cst.CSTNode, Scope] = {}
        self.attribute_writes: list[tuple[cst.Attribute, Binding]] = []
        self.star_imports: list[str] = []
        self._scope_of: dict[cst.CSTNode, Scope] = {}
        self._statement_of: dict[cst.CSTNode, cst.CSTNode] = {}
        self._function_of: dict[cst.CSTNode | None, cst.FunctionDef | None] = {}
        self._branches: dict[cst.CSTNode, tuple[Branch, ...]] = {}
        self.memo: dict[str, Any] = {}  # what other modules have worked out about this file
        self.root = Scope(self.module, "module", None)
        self.scopes[self.module] = self.root
        _Indexer(self).visit(self.module, None, self.root, ())

    # tree -----------------------------------------------------------------------------------------

    def code(self, node: cst.CSTNode) -> str:
        """The node's own source text, its parentheses included."""
        return self.module.code_for_node(node)

    def ancestors(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """The nodes around `node`, innermost first."""
        current = self.parents.get(node)
        while current is not None:
            yield current
            current = self.parents.get(current)

    def enclosing(self, node: cst.CSTNode, *kinds: type[cst.CSTNode]) -> cst.CSTNode | None:
        """The innermost ancestor of one of these types."""
        return next((ancestor for ancestor in self.ancestors(node) if isinstance(ancestor, kinds)), None)

    def function_of(self, node: cst.CSTNode) -> cst.FunctionDef | None:
        """The function whose body `node` is in, None at module or class level."""
        statement = self.statement_of(node)
        if statement is not node and isinstance(statement, cst.FunctionDef):
            return statement
        if statement not in self._function_of:
            found = self.enclosing(statement if statement is not None else node, cst.FunctionDef)
            self._function_of[statement] = found if isinstance(found, cst.FunctionDef) else None
        return self._function_of[statement]

    def class_of(self, node: cst.CSTNode) -> cst.ClassDef | None:
        """The class `node` is written in."""
        found = self.enclosing(node, cst.ClassDef)
        return found if isinstance(found, cst.ClassDef) else None

    def statement_of(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """The statement line, or compound statement, that holds the expression."""
        found = self._statement_of.get(node)
        passed: list[cst.CSTNode] = []
        current: cst.CSTNode | None = node
        while found is None and current is not None:
            found = current if _is_statement(type(current)) else self._statement_of.get(current)
            passed.append(current)
            current = self.parents.get(current)
        if found is not None:
            for below in passed:
                self._statement_of[below] = found
        return found

    def with_items(self, node: cst.CSTNode) -> Iterator[cst.BaseExpression]:
        """The context managers open at `node` inside its function, innermost first."""
        statement = self.statement_of(node)
        if statement is None:
            return
        for ancestor in (statement, *self.ancestors(statement)):
            if ancestor is node:
                continue
            if isinstance(ancestor, cst.FunctionDef):
                return
            if isinstance(ancestor, cst.With):
                for item in reversed(ancestor.items):
                    yield item.item

    def scope_of(self, node: cst.CSTNode) -> Scope:
        """The scope that an expression is evaluated in (a function's own defaults and decorators count as inside it)."""
        scope = self._scope_of.get(node)
        passed: list[cst.CSTNode] = []
        current: cst.CSTNode | None = node
        while scope is None and current is not None:
            scope = self.scopes.get(current) or self._scope_of.get(current)
            passed.append(current)
            current = self.parents.get(current)
        if scope is None:
            scope = self.root
        for below in passed:  # a chain of a thousand operators is climbed once, not once for each of its names
            self._scope_of[below] = scope
        return scope

    def branches_of(self, node: cst.CSTNode) -> tuple[Branch, ...]:
        """The conditional blocks around `node`, outermost first."""
        statement = self.statement_of(node)
        if statement is None or statement is node:
            return self._branches_around(node)
        if isinstance(statement, cst.BaseCompoundStatement):  # the node is of its head or of one of its blocks
            return self._branches_around(node)
        known = self._branches.get(statement)
        if known is None:
            known = self._branches[statement] = self._branches_around(statement)
        return known

    def _branches_around(self, node: cst.CSTNode) -> tuple[Branch, ...]:
        path: list[Branch] = []
        child: cst.CSTNode = node
        for ancestor in self.ancestors(node):
            names = _BRANCHING.get(type(ancestor))
            if names:
                for name in names:
                    value = getattr(ancestor, name)
                    if value is child:
                        path.append((ancestor, name))
                    elif isinstance(value, (list, tuple)) and child in value:
                        path.append((ancestor, f"{name}{list(value).index(child)}"))
            child = ancestor
        return tuple(reversed(path))

    def nodes(self, *kinds: type[cst.CSTNode]) -> Iterator[cst.CSTNode]:
        """All nodes of these types, in the order of the source within each type."""
        for kind in kinds:
            yield from self.by_type.get(kind, ())

    def is_inside(self, node: cst.CSTNode, ancestor: cst.CSTNode) -> bool:
        """Whether `node` is `ancestor` or lies within it."""
        return node is ancestor or any(a is ancestor for a in self.ancestors(node))

    # positions ------------------------------------------------------------------------------------

    @cached_property
    def _spans(self) -> dict[cst.CSTNode, tuple[int, int]]:
        recorder = _Recorder(self.module.default_indent, self.module.default_newline)
        self.module._codegen(recorder)
        return recorder.spans

    @cached_property
    def line_starts(self) -> Sequence[int]:
        """Offset of the start of each line; line 1 is element 0."""
        starts = [0]
        position = 0
        text = self.text
        while position < len(text):
            if text[position] == "\r":
                position += 2 if text[position + 1 : position + 2] == "\n" else 1
                starts.append(position)
            elif text[position] == "\n":
                position += 1
                starts.append(position)
            else:
                following = [p for p in (text.find("\n", position), text.find("\r", position)) if p >= 0]
                position = min(following, default=len(text))
        return starts

    def span(self, node: cst.CSTNode) -> tuple[int, int]:
        """Start and end offset of the node in the text, without its own parentheses."""
        return self._spans[node]

    def location(self, offset: int) -> tuple[int, int]:
        """1-based line and column of an offset."""
        from bisect import bisect_right

        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a 1-based line, without its line ending."""
        starts = self.line_starts
        end = starts[number] if number < len(starts) else len(self.text)
        return self.text[starts[number - 1] : end].rstrip("\r\n")


def read_text(path: Path) -> tuple[str, str, bytes]:
    """The text of a Python file, its encoding (PEP 263) and its byte order mark.

    Raises:
        SyntaxError: the file declares an unknown encoding.
        UnicodeDecodeError: the bytes are not of that encoding.
    """
    import codecs
    import io
    import tokenize

    raw = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    mark = codecs.BOM_UTF8 if raw.startswith(codecs.BOM_UTF8) else b""
    if mark:
        encoding = "utf-8"  # the mark is kept apart, or encoding would write a second one
    return raw[len(mark) :].decode(encoding), encoding, mark


def dotted_name(node: Any) -> str | None:
    """`a.b.c` of a Name or a chain of Attributes of one, else None."""
    parts: list[str] = []
    while isinstance(node, cst.Attribute):
        parts.append(node.attr.value)
        node = node.value
    if not isinstance(node, cst.Name):
        return None
    parts.append(node.value)
    return ".".join(reversed(parts))
