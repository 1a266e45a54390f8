"""NS601 amp-api."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import libcst as cst

from patches import flow
from patches import matching as m
from patches.edits import AddImport, Edit, Replace
from patches.rules.base import AbstractRule, Hit
from patches.source import Source, dotted_name

_MODULES = {
    f"torch.{device}.amp{tail}": device for device in ("cuda", "cpu") for tail in ("", ".autocast_mode", ".grad_scaler")
}  # fmt: skip
_MOVED = ("autocast", "GradScaler", "custom_fwd", "custom_bwd")
_AUTOCAST_ORDER = ("enabled", "dtype", "cache_enabled")  # of the old constructor; the new one has another
_VERSION_TEST = re.compile(r"(?i)version|torch_?(greater|less|ge|gt|lt|\d)|is_torch|hasattr|parse\(")
_FIRST_RELEASE = (2, 4)  # the first with all of torch.amp.{autocast, GradScaler, custom_fwd, custom_bwd}


class AmpApi(AbstractRule):
    """The old home of automatic mixed precision.

    What it finds: `torch.cuda.amp` and `torch.cpu.amp`: autocast, GradScaler, custom_fwd, custom_bwd, however imported. Quiet with
    `--target-torch` below 2.4, the first release that has all four in torch.amp, and for imports inside `try`, which are
    somebody's bridge between versions.

    Why it is bad: deprecated since torch 2.4; every use warns, and code that treats warnings as errors stops.

    Example:
        from torch.cuda.amp import GradScaler, autocast
        with autocast(True, torch.float16):
            ...

    Use instead:
        from torch.amp import GradScaler, autocast
        with autocast("cuda", enabled=True, dtype=torch.float16):
            ...

    Fix safety: safe. The old names are subclasses that pass "cuda" on. The old positional arguments of autocast are given by
    name, since the new constructor has them in another order. An import is changed together with all uses of it, or not at
    all: one that is only handed on is shown.

    References: PyTorch 2.4 release notes, "torch.cuda.amp.* deprecated".
    """

    code = "NS601"
    words = ("amp",)
    requires = (r"\bcuda\b|\bcpu\b",)
    nodes = (cst.ImportFrom, cst.Name, cst.Attribute)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        target = source.settings.target_torch
        if target is not None and target < _FIRST_RELEASE:
            return
        if isinstance(node, cst.ImportFrom):
            if node.module is not None and not node.relative and dotted_name(node.module) in _MODULES and not _in_try(source, node):
                fixed = _import_fix(source, node)
                if fixed is not None:
                    yield self.hit(node, *fixed)
            return
        full = _use(source, node)
        if full is None or _in_try(source, node):
            return
        assert isinstance(node, (cst.Name, cst.Attribute))
        if isinstance(node, cst.Name):
            statement = _import_of(source, node)
            fixed = _import_fix(source, statement) if statement is not None else None
            if statement is None or not _in_try(source, statement):
                yield self.hit(_shown(source, node), *(fixed or ()))
            return
        assert isinstance(node, cst.Attribute)
        moved = _module_fix(source, node.value)
        if moved:
            yield self.hit(_shown(source, node), *moved)
            return
        spelling = m.spell(source, node, f"torch.amp.{full.rpartition('.')[2]}")
        edits = _use_edits(source, node, full, spelling.text)
        imports = (AddImport(spelling.needs_import),) if spelling.needs_import is not None else ()
        yield self.hit(_shown(source, node), *(edits or ()), *(imports if edits else ()))


def _use(source: Source, node: cst.CSTNode) -> str | None:
    """The full old name that a node uses, for the outermost node of the dotted name outside imports."""
    bare = node.attr.value if isinstance(node, cst.Attribute) else node.value if isinstance(node, cst.Name) else ""
    if isinstance(node, cst.Attribute) and bare not in _MOVED:
        return None
    parent = source.parents.get(node)
    if isinstance(parent, cst.Attribute) or source.enclosing(node, cst.Import, cst.ImportFrom) is not None:
        return None
    if isinstance(parent, cst.Arg) and parent.keyword is node:
        return None
    if isinstance(node, cst.Name):
        scope = source.scope_of(node).lookup(bare)
        if scope is None or not any(b.kind == "import" and b.target.rpartition(".")[0] in _MODULES for b in scope.bindings[bare]):
            return None
    full = m.qualified(source, node)
    return full if full is not None and full.rpartition(".")[0] in _MODULES and full.rpartition(".")[2] in _MOVED else None


def _shown(source: Source, node: cst.CSTNode) -> cst.CSTNode:
    parent = source.parents.get(node)
    return parent if isinstance(parent, cst.Call) and parent.func is node else node


def _in_try(source: Source, node: cst.CSTNode) -> bool:
    """Whether the node is somebody's bridge between versions: inside `try`, or chosen by a test of the version."""
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, (cst.Try, cst.TryStar)):
            return True
        if isinstance(ancestor, (cst.If, cst.IfExp)) and _VERSION_TEST.search(source.code(ancestor.test)):
            return True
    return False


def _import_of(source: Source, node: cst.Name) -> cst.ImportFrom | None:
    scope = source.scope_of(node).lookup(node.value)
    found = [b.node for b in scope.bindings[node.value] if b.kind == "import"] if scope is not None else []
    return found[0] if len(found) == 1 and isinstance(found[0], cst.ImportFrom) else None


def _import_fix(source: Source, statement: cst.ImportFrom) -> tuple[Edit, ...] | None:
    """The edits of an import and of every use of what it imports; () if that cannot be done as one, None if there is nothing of ours in it."""
    memo: dict[cst.CSTNode, tuple[Edit, ...] | None] = source.memo.setdefault("amp_imports", {})
    if statement not in memo:
        memo[statement] = _imported(source, statement)
    return memo[statement]


def _imported(source: Source, statement: cst.ImportFrom) -> tuple[Edit, ...] | None:
    if isinstance(statement.names, cst.ImportStar) or statement.module is None:
        return ()
    imported = {alias.name.value for alias in statement.names if isinstance(alias.name, cst.Name)}
    if not imported & set(_MOVED):
        return None
    if not imported <= set(_MOVED):
        return ()
    edits: list[Edit] = [Replace(statement.module, "torch.amp")]
    used: set[str] = set()
    for name in source.nodes(cst.Name):
        full = _use(source, name)
        if full is None or not isinstance(name, cst.Name) or _import_of(source, name) is not statement:
            continue
        used.add(full.rpartition(".")[2])
        written = _use_edits(source, name, full, name.value)
        if written is None:
            return ()
        edits.extend(written)
    return tuple(edits) if used == imported else ()


def _module_fix(source: Source, name: cst.BaseExpression) -> tuple[Edit, ...]:
    """The edits of `from torch.cuda import amp` and of every use of that name; () if it is no such name, or they cannot all be done."""
    scope = source.scope_of(name).lookup(name.value) if isinstance(name, cst.Name) else None
    bindings = scope.bindings[name.value] if scope is not None and isinstance(name, cst.Name) else []
    if len(bindings) != 1 or bindings[0].target not in _MODULES or bindings[0].kind != "import" or _in_try(source, bindings[0].node):
        return ()
    assert isinstance(name, cst.Name)
    memo: dict[cst.CSTNode, tuple[Edit, ...]] = source.memo.setdefault("amp_modules", {})
    statement = bindings[0].node
    if statement not in memo:
        memo[statement] = _moved_module(source, statement, name)
    return memo[statement]


def _moved_module(source: Source, statement: cst.CSTNode, name: cst.Name) -> tuple[Edit, ...]:
    if not isinstance(statement, (cst.Import, cst.ImportFrom)) or isinstance(statement.names, cst.ImportStar) or len(statement.names) != 1:
        return ()
    if isinstance(statement, cst.Import):
        edits: list[Edit] = [Replace(statement.names[0].name, "torch.amp")]
    elif statement.module is not None:
        edits = [Replace(statement.module, "torch")]
    else:
        return ()
    for use in flow.uses_of(source, name):
        owner = source.parents.get(use)
        if source.enclosing(use, cst.Import, cst.ImportFrom) is not None:
            continue
        full = _use(source, owner) if isinstance(owner, cst.Attribute) and owner.value is use else None
        written = (
            _use_edits(source, owner, full, f"{name.value}.{owner.attr.value}") if full is not None and isinstance(owner, cst.Attribute) else None
        )
        if written is None:
            return ()
        edits.extend(written)
    return tuple(edits)


def _use_edits(source: Source, node: cst.Name | cst.Attribute, full: str, text: str) -> tuple[Edit, ...] | None:
    """The edits for one use; None if it is of a kind that is not written."""
    module, _, name = full.rpartition(".")
    device = _MODULES[module]
    parent = source.parents.get(node)
    if isinstance(parent, cst.Call) and parent.func is node:
        arguments = _arguments(source, parent, name, device)
        return None if arguments is None else (Replace(parent, f"{text}({arguments})"),)
    if isinstance(parent, cst.Decorator) and name.startswith("custom_"):
        return (Replace(node, f'{text}(device_type="{device}")'),)
    if name == "GradScaler" and (isinstance(parent, cst.Annotation) or _is_isinstance(source, node)):
        return (Replace(node, text),) if text != source.code(node) else ()
    return None


def _is_isinstance(source: Source, node: cst.CSTNode) -> bool:
    call = source.enclosing(node, cst.Call)
    return isinstance(call, cst.Call) and isinstance(call.func, cst.Name) and call.func.value in ("isinstance", "issubclass")


def _arguments(source: Source, call: cst.Call, name: str, device: str) -> str | None:
    if any(arg.star for arg in call.args) or "#" in source.code(call):
        return None
    written: list[str] = []
    for position, arg in enumerate(call.args):
        text = source.code(arg.value)
        if arg.keyword is not None:
            written.append(f"{arg.keyword.value}={text}")
        elif name == "autocast" and position < len(_AUTOCAST_ORDER):
            written.append(f"{_AUTOCAST_ORDER[position]}={text}")
        else:
            written.append(text)
    first = f'"{device}"' if name in ("autocast", "GradScaler") else f'device_type="{device}"'
    return ", ".join(_ordered(first, written, keyword_first=name.startswith("custom_")))


def _ordered(first: str, rest: Sequence[str], keyword_first: bool) -> list[str]:
    return [*rest, first] if keyword_first else [first, *rest]
