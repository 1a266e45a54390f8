"""Which assignments a use of a name can see, inside one function: no fixpoint, and honest about what it does not know."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence, Set

import libcst as cst

from patches.source import Binding, Branch, Source, dotted_name

_LOOPS = (cst.For, cst.While)


def reaching(source: Source, use: cst.Name) -> Sequence[Binding] | None:
    """The bindings that a use of a local name may see; None when the name is not this function's own.

    The last binding that is certain to run before the use ends the list; conditional ones after it are
    kept unless they lie in the other branch of the same `if`; later ones inside a shared loop are kept.
    """
    memo: dict[cst.Name, Sequence[Binding] | None] = source.memo.setdefault("reaching", {})
    if use not in memo:
        memo[use] = _reaching(source, use)
    return memo[use]


def _reaching(source: Source, use: cst.Name) -> Sequence[Binding] | None:
    here = source.scope_of(use)
    scope = here.lookup(use.value)
    if scope is None:
        return None
    bindings = scope.bindings[use.value]
    if scope is not here and not _is_evaluated_in_place(source, use, scope.node):
        return bindings  # a closure or a module-level name: any of its values, whenever it was set
    position = source.order[use]
    branches = source.branches_of(use)
    before = [b for b in bindings if b.order <= position and not _is_exclusive(b.branches, branches)]
    certain = [b for b in before if _is_prefix(b.branches, branches)]
    last = certain[-1] if certain else None
    seen = [b for b in before if last is None or b.order >= last.order]
    for loop, _ in branches:
        if isinstance(loop, _LOOPS) and (last is None or not any(owner is loop for owner, _ in last.branches)):
            seen.extend(b for b in bindings if b.order > position and any(owner is loop for owner, _ in b.branches))
    latest: dict[tuple[Branch, ...], int] = {}  # of the bindings in each block, the last before the use
    for binding in seen:
        if binding.order <= position:
            latest[binding.branches] = max(binding.order, latest.get(binding.branches, -1))
    return [b for b in dict.fromkeys(seen) if not _is_overwritten(b, latest)]


def _is_overwritten(binding: Binding, latest: Mapping[tuple[Branch, ...], int]) -> bool:
    """Whether a later binding runs before the use whenever this one does: in the same block, or in one around it."""
    blocks = (binding.branches[:depth] for depth in range(len(binding.branches) + 1))
    return any(latest.get(block, -1) > binding.order for block in blocks)


def _is_evaluated_in_place(source: Source, use: cst.CSTNode, scope_node: cst.CSTNode) -> bool:
    """Whether only comprehensions lie between the use and the scope (they run where they stand)."""
    for ancestor in source.ancestors(use):
        if ancestor is scope_node:
            return True
        if isinstance(ancestor, (cst.FunctionDef, cst.Lambda, cst.ClassDef)):
            return False
    return scope_node is source.module


def _is_prefix(shorter: Sequence[Branch], longer: Sequence[Branch]) -> bool:
    return len(shorter) <= len(longer) and all(a[0] is b[0] and a[1] == b[1] for a, b in zip(shorter, longer, strict=False))


def _is_exclusive(left: Sequence[Branch], right: Sequence[Branch]) -> bool:
    """Whether the two blocks are different branches of one `if` or `match`."""
    for a, b in zip(left, right, strict=False):
        if a[0] is not b[0]:
            return False
        if a[1] != b[1]:
            return isinstance(a[0], (cst.If, cst.Match))
    return False


def definition(source: Source, node: cst.BaseExpression) -> cst.BaseExpression:
    """The expression a local name stands for at this place, or `node` itself.

    Follows one name to the one assignment that reaches it, provided that evaluating that expression
    here would give the same value: nothing it reads has been rebound or written in place since.
    """
    made = assigned(source, node)
    if made is node or not isinstance(node, cst.Name):
        return node
    if _is_written(source, {node.value}, source.order[made], source.order[node]):
        return node  # `p[mask] = 0.5`, `p.clamp_(min=eps)`: it is no longer what it was made as
    return made if is_stable(source, made, node) else node


def assigned(source: Source, node: cst.BaseExpression) -> cst.BaseExpression:
    """The expression that a local name was assigned, if one assignment reaches it, whatever became of its parts since; else `node`."""
    if not isinstance(node, cst.Name):
        return node
    found = reaching(source, node)
    if found is None or len(found) != 1:
        return node
    only = found[0]
    if only.kind != "assign" or only.index is not None or only.value is None:
        return node
    if source.scope_of(only.node) is not source.scope_of(node) or only.branches != source.branches_of(node)[: len(only.branches)]:
        return node
    return only.value


def is_stable(source: Source, expression: cst.CSTNode, at: cst.CSTNode) -> bool:
    """Whether `expression`, evaluated again at the later place `at`, reads the same values."""
    first, last = source.order[expression], source.order[at]
    read: set[str] = set()
    attributes: list[cst.Attribute] = []
    for name in _names_in(source, expression):
        read.add(name.value)
        if isinstance(parent := source.parents.get(name), cst.Attribute) and parent.value is name:
            read.add(f"{name.value}.{parent.attr.value}")
            attributes.append(parent)
        here = source.scope_of(name)
        scope = here.lookup(name.value)
        if name.value in here.outer_names and _calls_between(source, first, last):
            return False  # `global x`: whatever is called may set it
        if scope is None:
            continue
        if any(first < b.order <= last for b in scope.bindings[name.value]):
            return False
    if _is_written(source, read, first, last):
        return False
    return not any(_may_be_set_by_a_method(source, attribute, first, last) for attribute in attributes)


def _is_written(source: Source, read: Set[str], first: int, last: int) -> bool:
    """Whether something sets an attribute or elements of one of these, or calls an in-place method of it, between two places."""
    places, targets = _writes(source)
    return any(target in read for target in targets[bisect_right(places, first) : bisect_left(places, last)])


def _writes(source: Source) -> tuple[list[int], list[str]]:
    """Where something is written otherwise than by binding a name, in order, and what."""
    memo: tuple[list[int], list[str]] | None = source.memo.get("writes")
    if memo is None:
        found = [(source.order[target], dotted_name(target)) for target, _ in source.attribute_writes]
        for call in source.nodes(cst.Call):
            assert isinstance(call, cst.Call)
            if isinstance(call.func, cst.Attribute) and call.func.attr.value.endswith("_") and not call.func.attr.value.startswith("_"):
                found.append((source.order[call.func.value], dotted_name(call.func.value)))
        for assign in source.nodes(cst.AssignTarget, cst.AugAssign):
            target = getattr(assign, "target", None)
            if isinstance(target, cst.Subscript):
                while isinstance(target, cst.Subscript):
                    target = target.value
                found.append((source.order[target], dotted_name(target)))
        named = sorted((place, target) for place, target in found if target is not None)
        memo = source.memo["writes"] = ([place for place, _ in named], [target for _, target in named])
    return memo


def _calls_between(source: Source, first: int, last: int) -> Sequence[cst.Call]:
    memo: tuple[list[int], list[cst.Call]] | None = source.memo.get("ordered_calls")
    if memo is None:
        calls = sorted((node for node in source.nodes(cst.Call) if isinstance(node, cst.Call)), key=source.order.__getitem__)
        memo = source.memo["ordered_calls"] = ([source.order[call] for call in calls], calls)
    places, calls = memo
    return calls[bisect_right(places, first) : bisect_right(places, last)]


def _may_be_set_by_a_method(source: Source, attribute: cst.Attribute, first: int, last: int) -> bool:
    """Whether `x.name` may be another after the calls between: a method of x runs, and the class sets the attribute outside `__init__`."""
    if not isinstance(attribute.value, cst.Name) or attribute.value.value not in ("self", "cls"):
        return False
    methods = [
        call.func
        for call in _calls_between(source, first, last)
        if isinstance(call.func, cst.Attribute) and isinstance(call.func.value, cst.Name) and call.func.value.value == attribute.value.value
    ]
    if all(any(not isinstance(b.node, cst.FunctionDef) for b in attribute_values(source, method)) for method in methods):
        return False  # layers: calling one sets nothing of its owner
    setters = [binding for binding in attribute_values(source, attribute) if binding.kind != "function"]
    functions = [source.function_of(binding.node) for binding in setters]
    return not setters or any(function is not None and function.name.value not in ("__init__", "__new__", "setup") for function in functions)


def _names_in(source: Source, node: cst.CSTNode) -> Sequence[cst.Name]:
    found: list[cst.Name] = []
    stack: list[cst.CSTNode] = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, cst.Attribute):
            stack.append(current.value)
        elif isinstance(current, cst.Name):
            found.append(current)
        elif isinstance(current, cst.Arg):
            stack.append(current.value)
        else:
            stack.extend(child for child in current.children if source.parents.get(child) is current)
    return found


def names_in(source: Source, node: cst.CSTNode) -> Sequence[cst.Name]:
    """The names that an expression reads (attribute names and keywords left out)."""
    return _names_in(source, node)


def uses_of(source: Source, node: cst.BaseExpression) -> Sequence[cst.Name]:
    """The places that read the same name in the same scope, this one included; nothing for other expressions."""
    if not isinstance(node, cst.Name):
        return ()
    scope = source.scope_of(node).lookup(node.value)
    by_name: dict[str, list[cst.Name]] | None = source.memo.get("names")
    if by_name is None:
        by_name = source.memo["names"] = {}
        for name in source.nodes(cst.Name):
            assert isinstance(name, cst.Name)
            by_name.setdefault(name.value, []).append(name)
    found = []
    for name in by_name.get(node.value, ()):
        parent = source.parents.get(name)
        written = isinstance(parent, (cst.AssignTarget, cst.Param)) or (isinstance(parent, cst.Attribute) and parent.attr is name)
        keyword = isinstance(parent, cst.Arg) and parent.keyword is name
        if not written and not keyword and source.scope_of(name).lookup(name.value) is scope:
            found.append(name)
    return found


def readers(source: Source, node: cst.BaseExpression) -> tuple[cst.Name, ...]:
    """The places that read the name which an expression is assigned to, if it is assigned to one."""
    statement = source.parents.get(node)
    if not isinstance(statement, cst.Assign) or len(statement.targets) != 1 or not isinstance(target := statement.targets[0].target, cst.Name):
        return ()
    scope = source.scope_of(target)
    return tuple(
        use for use in uses_of(source, target) if source.scope_of(use) is scope and any(b.node is statement for b in reaching(source, use) or ())
    )


def attribute_values(source: Source, node: cst.Attribute) -> Sequence[Binding]:
    """The assignments to `self.<name>` in the class around `node` and its bases in this file, class level included."""
    owner = source.class_of(node)
    memo: dict[tuple[cst.CSTNode | None, str], list[Binding]] = source.memo.setdefault("attribute_values", {})
    key = (owner, node.attr.value)
    if key not in memo:
        memo[key] = list(_class_attribute(source, owner, node.attr.value, depth=0)) if owner is not None else []
    return memo[key]


def set_before(source: Source, node: cst.Attribute) -> Binding | None:
    """The assignment to `self.<name>` that is certain to run before this read of it in the same function, the last of them; None if none is.

    A method that is called in between may set it anew: where that matters, `is_stable` tells.
    """
    function = source.function_of(node)
    if function is None:
        return None
    place, branches = source.order[node], source.branches_of(node)
    here = [b for b in attribute_values(source, node) if b.order < place and source.function_of(b.node) is function]
    if not here or not _is_prefix(here[-1].branches, branches):
        return None
    return here[-1] if here[-1].kind == "assign" else None


def _class_attribute(source: Source, owner: cst.ClassDef, name: str, depth: int) -> Sequence[Binding]:
    found: list[Binding] = []
    for target, binding in source.attribute_writes:
        if (
            target.attr.value == name
            and isinstance(target.value, cst.Name)
            and target.value.value in ("self", "cls")
            and source.class_of(target) is owner
        ):
            found.append(binding)
    found.extend(source.scopes[owner].bindings.get(name, ()))
    if not found and depth < 4:
        for base in base_classes(source, owner):
            found.extend(_class_attribute(source, base, name, depth + 1))
    return found


def base_classes(source: Source, owner: cst.ClassDef) -> Sequence[cst.ClassDef]:
    """The bases of a class that are defined in the same file."""
    bases: list[cst.ClassDef] = []
    for argument in owner.bases:
        if isinstance(argument.value, cst.Name):
            scope = source.scope_of(owner).lookup(argument.value.value) or source.root
            for binding in scope.bindings.get(argument.value.value, ()):
                if isinstance(binding.node, cst.ClassDef) and binding.node is not owner:
                    bases.append(binding.node)
    return bases


def local_function(source: Source, call: cst.Call) -> cst.FunctionDef | None:
    """The function of this file that a call reaches.

    A plain name; `self.name` of the class around it; a module made from a class of this file, whose
    `forward` it then is (`model = VAE().to(device)`, `self.encoder = Encoder()`).
    """
    memo: dict[cst.CSTNode, cst.FunctionDef | None] = source.memo.setdefault("local_function", {})
    if call not in memo:
        memo[call] = None  # a call inside its own definition
        memo[call] = _local_function(source, call)
    return memo[call]


def _local_function(source: Source, call: cst.Call) -> cst.FunctionDef | None:
    func = call.func
    if isinstance(func, cst.Name):
        scope = source.scope_of(func).lookup(func.value)
        bindings = scope.bindings[func.value] if scope is not None else []
    elif isinstance(func, cst.Attribute) and isinstance(func.value, cst.Name) and func.value.value in ("self", "cls"):
        bindings = list(attribute_values(source, func))
    elif isinstance(func, cst.Attribute):
        owner = _instance_class(source, func.value)
        return _method(source, owner, func.attr.value) if owner is not None else None
    else:
        return None
    if len(bindings) == 1 and isinstance(bindings[0].node, cst.FunctionDef):
        return bindings[0].node
    owner = _instance_class(source, func)
    return _method(source, owner, "forward") if owner is not None else None


_PASSING_METHODS = ("to", "cuda", "cpu", "double", "float", "half", "train", "eval", "requires_grad_", "apply", "bfloat16")


def _instance_class(source: Source, node: cst.BaseExpression) -> cst.ClassDef | None:
    """The class of this file of which a name or `self.x`, set once, holds an instance."""
    if isinstance(node, cst.Name):
        if node.value in ("self", "cls"):
            return None
        scope = source.scope_of(node).lookup(node.value)
        bindings = scope.bindings[node.value] if scope is not None else []
    elif isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name) and node.value.value == "self":
        bindings = list(attribute_values(source, node))
    else:
        return None
    made = {b.value for b in bindings if b.kind == "assign" and b.index is None}
    if len(made) != 1 or len(bindings) != 1:
        return None
    value = made.pop()
    while isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute) and value.func.attr.value in _PASSING_METHODS:
        value = value.func.value
    if not isinstance(value, cst.Call) or not isinstance(value.func, cst.Name):
        return None
    scope = source.scope_of(value.func).lookup(value.func.value)
    classes = scope.bindings[value.func.value] if scope is not None else []
    return classes[0].node if len(classes) == 1 and isinstance(classes[0].node, cst.ClassDef) else None


def _method(source: Source, owner: cst.ClassDef, name: str) -> cst.FunctionDef | None:
    found = _class_attribute(source, owner, name, depth=0)
    return found[0].node if len(found) == 1 and isinstance(found[0].node, cst.FunctionDef) else None


def calls_of(source: Source, function: cst.FunctionDef) -> Sequence[cst.Call]:
    """The calls in this file that are certain to reach a function."""
    memo: dict[cst.CSTNode, list[cst.Call]] = source.memo.setdefault("calls_of", {})
    if not memo:
        memo[source.module] = []
        for call in source.nodes(cst.Call):
            if isinstance(call, cst.Call) and isinstance(call.func, (cst.Name, cst.Attribute)):
                reached = local_function(source, call)
                if reached is not None:
                    memo.setdefault(reached, []).append(call)
    return memo.get(function, [])


def returned(source: Source, function: cst.FunctionDef) -> Sequence[cst.BaseExpression]:
    """The expressions a function returns (not those of functions nested in it)."""
    memo: dict[cst.CSTNode, list[cst.BaseExpression]] = source.memo.setdefault("returned", {})
    if not memo:
        for node in source.nodes(cst.Return):
            owner = source.enclosing(node, cst.FunctionDef, cst.Lambda)
            if isinstance(node, cst.Return) and node.value is not None and owner is not None:
                memo.setdefault(owner, []).append(node.value)
        memo.setdefault(source.module, [])
    return memo.get(function, [])
