"""Names as Python resolves them: what `F.softmax` is, and how this file would write `torch.logsumexp`."""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from patches.source import Binding, Scope, Source, dotted_name

_DEPTH = 5  # `f = torch.exp; g = f; ...` is followed this far


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a file writes a name: `text`, and the import it would still need (None when it has one)."""

    text: str
    needs_import: str | None = None


def qualified(source: Source, node: cst.CSTNode, depth: int = 0) -> str | None:
    """The full name behind a Name or Attribute: `torch.nn.functional.softmax`, `builtins.float`, `numpy.exp`.

    Import aliases, from-imports and names bound once to such a thing (`softmax = F.softmax`) are
    followed. None when it is not certain: a parameter, a name bound in several ways, a local function.
    """
    if isinstance(node, cst.Attribute):
        owner = qualified(source, node.value, depth)
        return None if owner is None else f"{owner}.{node.attr.value}"
    if not isinstance(node, cst.Name):
        return None
    scope = source.scope_of(node).lookup(node.value)
    if scope is None:
        return f"builtins.{node.value}" if hasattr(builtins, node.value) else None
    bindings = scope.bindings[node.value]
    if any(binding.kind == "import" for binding in bindings):
        targets = {binding.target for binding in bindings if binding.kind == "import"}
        others = [binding for binding in bindings if binding.kind != "import"]
        fallback_only = all(isinstance(binding.value, cst.Name) and binding.value.value == "None" for binding in others)
        return next(iter(targets)) if len(targets) == 1 and fallback_only else None
    only = bindings[0]
    if len(bindings) == 1 and only.kind == "assign" and only.index is None and isinstance(only.value, (cst.Name, cst.Attribute)) and depth < _DEPTH:
        return qualified(source, only.value, depth + 1)
    return None


def is_type_checking(owner: cst.CSTNode) -> bool:
    """Whether a block is `if TYPE_CHECKING:`, whose body does not run."""
    return isinstance(owner, cst.If) and (dotted_name(owner.test) or "").rpartition(".")[2] == "TYPE_CHECKING"


def imported_as(bindings: Sequence[Binding]) -> Binding | None:
    """The import that a name stands for: the only one, besides `torch = None` where it fails; None if it may be anything else."""
    imports = [b for b in bindings if b.kind == "import" and not any(is_type_checking(owner) and name == "body" for owner, name in b.branches)]
    others = [b for b in bindings if b.kind != "import"]
    if len({b.target for b in imports}) != 1 or any(not (isinstance(b.value, cst.Name) and b.value.value == "None") for b in others):
        return None
    return imports[0]


def _visible_imports(source: Source, at: cst.CSTNode) -> list[tuple[str, Binding]]:
    """Imported names that mean the same thing wherever the expression at `at` looks, innermost scope first."""
    here = source.scope_of(at)
    found: list[tuple[str, Binding]] = []
    scope: Scope | None = here
    ancestors = set(source.ancestors(at))
    importing: dict[cst.CSTNode, list[tuple[str, Binding]]] = source.memo.setdefault("imports", {})
    while scope is not None:
        if scope.node not in importing:
            only = ((name, imported_as(bindings)) for name, bindings in scope.bindings.items())
            importing[scope.node] = [(name, first) for name, first in only if first is not None]
        for name, first in importing[scope.node]:
            if here.lookup(name) is not scope:
                continue
            later = source.order.get(at, 0) < first.order and scope is here
            if not later and not any(owner not in ancestors and name_ != "body" for owner, name_ in first.branches):
                found.append((name, first))
        scope = scope.parent
    return found


def spell(source: Source, at: cst.CSTNode, *alternatives: str) -> Spelling:
    """How the file itself would write one of `alternatives` (equivalent full names, the preferred one first) at `at`.

    A from-import of the very name wins, then the longest imported prefix (`F.` before `torch.nn.functional.`).
    If the file has neither, the spelling of the first alternative comes with the import it needs.
    """
    imports = _visible_imports(source, at)
    for wanted in alternatives:
        for name, binding in imports:
            if binding.target == wanted:
                return Spelling(name)
    best: tuple[int, str] | None = None
    for wanted in alternatives:
        for name, binding in imports:
            if wanted.startswith(f"{binding.target}.") and isinstance(binding.node, (cst.Import, cst.ImportFrom)):
                rest = wanted[len(binding.target) + 1 :]
                if best is None or rest.count(".") < best[0]:
                    best = (rest.count("."), f"{name}.{rest}")
        if best is not None:
            return Spelling(best[1])
    first = alternatives[0]
    module, _, name = first.rpartition(".")
    here = source.scope_of(at)
    if here.lookup(name) is None and not hasattr(builtins, name) and _imports_names_from(source, module):
        return Spelling(name, f"from {module} import {name}")
    head = first.split(".")[0]
    taken = here.lookup(head)
    if taken is not None and not all(b.kind == "import" and b.target == head for b in taken.bindings[head]):
        alias = f"_{head}"  # the name means something else here
        while re.search(rf"\b{alias}\b", source.text):
            alias += "_"
        return Spelling(f"{alias}.{first[len(head) + 1 :]}", f"import {head} as {alias}")
    return Spelling(first, f"import {head}")


def invented(source: Source, node: cst.CSTNode, suggestion: str) -> str:
    """A new local name for the value of `node`: free in the file, and of all values named in one scope this one's own."""
    taken: dict[tuple[Scope, str], cst.CSTNode] = source.memo.setdefault("invented", {})
    scope = source.scope_of(node)
    name = suggestion
    while taken.get((scope, name), node) is not node or scope.lookup(name) is not None or re.search(rf"\b{name}\b", source.text):
        name += "_"
    taken[scope, name] = node
    return name


def _imports_names_from(source: Source, module: str) -> bool:
    """Whether the file's habit is `from <module> import ...`."""
    return any(
        isinstance(node, cst.ImportFrom) and node.module is not None and dotted_name(node.module) == module and not node.relative
        for node in source.nodes(cst.ImportFrom)
    )
