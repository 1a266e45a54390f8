"""Where a value is made, so that it can be bounded once, there, for all who read it.

A name is followed to its assignments, a parameter to the arguments of its callers in the file, an element
of a returned tuple into the function that returns it, and `self.x` to where it is set or, for a parameter
of the module, to where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import libcst as cst

from patches import flow, values
from patches.edits import AddLines, Edit, Replace, Unfixable
from patches.source import Binding, Source, dotted_name

Bound = Callable[[str], str]
"""Text of a value to text of the bounded value."""

_DEPTH = 4


def bound_where_made(source: Source, node: cst.BaseExpression, bound: Bound, is_bounded: Callable[[cst.BaseExpression], bool]) -> tuple[Edit, ...]:
    """The edits that bound the value of `node` where it is made.

    Raises:
        Unfixable: some of its makings are out of sight or have no line to add one beside.
    """
    found: list[Edit] = []
    for edit in _sites(source, node, bound, is_bounded, 0):
        if not any(_alike(edit, other) for other in found):
            found.append(edit)
    if not found:
        raise Unfixable("nowhere to bound the value")
    return tuple(found)


def _alike(left: Edit, right: Edit) -> bool:
    if isinstance(left, AddLines) and isinstance(right, AddLines):
        return left.node is right.node and left.lines == right.lines and left.where == right.where
    return isinstance(left, Replace) and isinstance(right, Replace) and left.node is right.node


def _sites(source: Source, node: cst.BaseExpression, bound: Bound, is_bounded: Callable[[cst.BaseExpression], bool], depth: int) -> Iterator[Edit]:
    if depth > _DEPTH:
        raise Unfixable("made too many calls away")
    if isinstance(node, cst.Name):
        bindings = flow.reaching(source, node)
        if not bindings:
            raise Unfixable(f"{node.value} is not made in this file")
        for binding in bindings:
            yield from _binding_sites(source, node.value, binding, bound, is_bounded, depth)
    elif isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name) and node.value.value == "self":
        yield from _attribute_sites(source, node, bound)
    else:
        yield Replace(node, bound(_bare(source, node)))


def _bare(source: Source, node: cst.BaseExpression) -> str:
    return source.code(node.with_changes(lpar=(), rpar=())) if not isinstance(node, (cst.GeneratorExp, cst.Tuple)) else source.code(node)


def _binding_sites(
    source: Source, name: str, binding: Binding, bound: Bound, is_bounded: Callable[[cst.BaseExpression], bool], depth: int
) -> Iterator[Edit]:
    if binding.kind == "parameter":
        yield from _parameter_sites(source, name, binding, bound, is_bounded, depth)
        return
    if binding.kind not in ("assign", "augment") or isinstance(binding.node, cst.NamedExpr):
        raise Unfixable(f"{name} is bound by a loop, a with or an import")
    if binding.kind == "assign" and binding.value is not None:
        if binding.index is None and is_bounded(binding.value):
            return
        function = flow.local_function(source, binding.value) if isinstance(binding.value, cst.Call) else None
        if function is not None and binding.index is not None and binding.index >= 0:
            elements = returned_elements(source, function, binding.index)
            if elements:
                try:
                    edits = [edit for e in elements if not is_bounded(e) for edit in _sites(source, e, bound, is_bounded, depth + 1)]
                except Unfixable:
                    edits = []
                if edits:
                    yield from edits
                    return
    yield AddLines(binding.node, (f"{name} = {bound(name)}",), "after")


def returned_elements(source: Source, function: cst.FunctionDef, index: int) -> Sequence[cst.BaseExpression]:
    """Element `index` of each tuple a function returns; nothing unless every return is a plain tuple that long."""
    found: list[cst.BaseExpression] = []
    for expression in flow.returned(source, function):
        if not isinstance(expression, cst.Tuple) or index >= len(expression.elements):
            return ()
        if any(isinstance(element, cst.StarredElement) for element in expression.elements):
            return ()
        found.append(expression.elements[index].value)
    return found


def arguments_for(source: Source, function: cst.FunctionDef, name: str) -> Sequence[cst.BaseExpression] | None:
    """What the callers in this file pass for a parameter; None if a call cannot be matched or there is none."""
    calls = flow.calls_of(source, function)
    if not calls:
        return None
    parameters = [p.name.value for p in (*function.params.posonly_params, *function.params.params) if isinstance(p.name, cst.Name)]
    found: list[cst.BaseExpression] = []
    for call in calls:
        offset = 1 if parameters and parameters[0] in ("self", "cls") else 0
        if any(arg.star for arg in call.args):
            return None
        positional = [arg.value for arg in call.args if arg.keyword is None]
        keyword = next((arg.value for arg in call.args if arg.keyword is not None and arg.keyword.value == name), None)
        if keyword is not None:
            found.append(keyword)
        elif name in parameters and 0 <= parameters.index(name) - offset < len(positional):
            found.append(positional[parameters.index(name) - offset])
        else:
            return None
    return found


def _parameter_sites(
    source: Source, name: str, binding: Binding, bound: Bound, is_bounded: Callable[[cst.BaseExpression], bool], depth: int
) -> Iterator[Edit]:
    function = source.function_of(binding.node)
    if function is None or source.enclosing(binding.node, cst.Lambda) is not None:
        raise Unfixable("a lambda's parameter")
    passed = arguments_for(source, function, name)
    if passed is not None:
        try:
            edits = [edit for e in passed if not is_bounded(e) for edit in _sites(source, e, bound, is_bounded, depth + 1)]
        except Unfixable:
            edits = []
        if edits:
            yield from edits
            return
    yield AddLines(first_statement(function), (f"{name} = {bound(name)}",), "before")


def first_statement(function: cst.FunctionDef) -> cst.CSTNode:
    """The first statement after the docstring.

    Raises:
        Unfixable: the body stands on the line of the def, or is only a docstring.
    """
    if not isinstance(function.body, cst.IndentedBlock):
        raise Unfixable("the body is on the line of the def")
    for statement in function.body.body:
        is_text = (
            isinstance(statement, cst.SimpleStatementLine)
            and isinstance(statement.body[0], cst.Expr)
            and isinstance(statement.body[0].value, (cst.SimpleString, cst.ConcatenatedString))
        )
        if not is_text:
            return statement
    raise Unfixable("the body is only a docstring")


def _attribute_sites(source: Source, node: cst.Attribute, bound: Bound) -> Iterator[Edit]:
    """Computed attributes are bounded where they are set; a module's parameter where this function reads it, once for all reads."""
    bindings = flow.attribute_values(source, node)
    computed = [b for b in bindings if b.kind == "assign" and b.value is not None and not _is_leaf(source, b.value)]
    text = f"self.{node.attr.value}"
    if bindings and len(computed) == len(bindings) and not any(_mentions(b.value, text) for b in computed):
        for binding in computed:
            yield AddLines(binding.node, (f"{text} = {bound(text)}",), "after")
        return
    function = source.function_of(node)
    reads = [
        read
        for read in source.nodes(cst.Attribute)
        if isinstance(read, cst.Attribute) and dotted_name(read) == text and source.function_of(read) is function and not _is_inner(source, read)
    ]
    first_read = min((source.order[read] for read in reads), default=0)
    is_set_between = any(source.function_of(b.node) is function and b.order > first_read for b in bindings)
    if len(reads) <= 1 or function is None or is_set_between:
        yield Replace(node, bound(text))
        return
    name = node.attr.value
    if source.scope_of(node).lookup(name) is not None:
        name = f"bounded_{name}"
    first = min(reads, key=source.order.__getitem__)
    statement = source.statement_of(first)
    branches = source.branches_of(first)
    if statement is None or any(source.branches_of(read)[: len(branches)] != branches for read in reads):
        statement = first_statement(function)
    yield AddLines(statement, (f"{name} = {bound(text)}",), "before")
    for read in reads:
        yield Replace(read, name)


def _mentions(node: cst.CSTNode | None, text: str) -> bool:
    """Whether an expression reads the attribute: a value made of itself cannot be seen to be bounded, so it is bounded where it is read."""
    if node is None:
        return False
    return (isinstance(node, cst.Attribute) and dotted_name(node) == text) or any(_mentions(child, text) for child in node.children)


def _is_inner(source: Source, read: cst.Attribute) -> bool:
    """Whether the read is the owner of something that is not a value (`self.log_std.data.fill_(0)`, `self.log_std.shape`) or is written to."""
    parent = source.parents.get(read)
    while isinstance(parent, (cst.Element, cst.StarredElement, cst.Tuple, cst.List)):  # `self.mu, self.logvar = ...`
        parent = source.parents.get(parent)
    if isinstance(parent, (cst.For, cst.CompFor)) and not source.is_inside(read, parent.iter):
        return not isinstance(parent, cst.For) or source.is_inside(read, parent.target)
    if isinstance(parent, (cst.AssignTarget, cst.AugAssign, cst.AnnAssign)):
        return True
    return isinstance(parent, cst.Attribute) and parent.attr.value in ("data", "shape", "grad", "requires_grad", "device", "dtype", "size")


def _is_leaf(source: Source, node: cst.BaseExpression) -> bool:
    value = values.value_of(source, node)
    return value.origin in ("parameter", "constant") or value.kind in ("module", "other", "number", "integer") or isinstance(node, cst.Name)
