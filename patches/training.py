"""The order of backward, clip, unscale and step in a training loop, helpers of the same file looked through.

A function is read as the sequence of the calls that matter to the rules of family 5. A call of a function
of the file stands for what that function does. Branches are kept, so that the two arms of an `if` are not
taken for one after the other; nothing is iterated: a loop's body is read once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import libcst as cst

from patches import flow, names, values
from patches.source import Branch, Source, dotted_name

Kind = Literal["backward", "scaled backward", "clip", "unscale", "step", "zero", "opaque"]

_DEPTH = 3  # helpers of helpers are looked through this far
_OPTIMIZER_NAME = re.compile(
    r"(^|_)(opt|optim|optimi[sz]er)s?($|_|\d|[A-Z])|optimi[sz]er|^(adam|adamw|sgd|rmsprop|lion|lamb|adagrad|adadelta|adafactor)$"
)
_NOT_OPTIMIZER_NAME = re.compile(r"sched|option|lr_|warmup|swa|ema|env|bayes|search|acq", re.IGNORECASE)
_OPTIMIZER_CLASS = re.compile(
    r"^(Sparse)?(Adam\w*|N?AdamW?|RAdam|SGD\w*|RMSprop\w*|Lion\w*|L?AMB|LARS|Ada(grad|delta|max|factor|belief|bound)\w*|ASGD|Rprop|Ranger\w*|\w*Optimi[sz]er)$"
)
_TRAINERS = ("accelerator", "fabric", "engine", "strategy", "trainer", "manager", "deepspeed", "booster", "plugin", "precision")


@dataclass(frozen=True, slots=True, eq=False)
class TrainingCall:
    """One call that matters: what it is, the call, where it stands in the function that was read, and whose it is.

    `at` is the node in the function that was read (the call of the helper, for calls inside one);
    `owner` is the optimizer of a step (`optimizer`, `self.opt_g`), the scaler of an unscale or a scaled backward.
    """

    kind: Kind
    node: cst.Call
    at: cst.CSTNode
    branches: tuple[Branch, ...]
    owner: str = ""
    scaler: cst.BaseExpression | None = None
    optimizer: cst.BaseExpression | None = None


def calls(source: Source, function: cst.FunctionDef | None) -> Sequence[TrainingCall]:
    """The calls that matter in a function (None: the module's own level), in the order of the source."""
    memo: dict[cst.CSTNode | None, list[TrainingCall]] = source.memo.setdefault("training_calls", {})
    if function not in memo:
        memo[function] = list(_read(source, function, 0, frozenset()))
    return memo[function]


def callers(source: Source, function: cst.FunctionDef) -> Sequence[cst.FunctionDef | None]:
    """The functions of the file that call this one directly."""
    memo: dict[cst.CSTNode, list[cst.FunctionDef | None]] | None = source.memo.get("training_callers")
    if memo is None:
        memo = source.memo["training_callers"] = {}
        for node in source.nodes(cst.Call):
            assert isinstance(node, cst.Call)
            called = flow.local_function(source, node)
            if called is not None:
                memo.setdefault(called, []).append(source.function_of(node))
    return memo.get(function, ())


def are_exclusive(left: Sequence[Branch], right: Sequence[Branch]) -> bool:
    """Whether the two places are different arms of one `if`."""
    for a, b in zip(left, right, strict=False):
        if a[0] is not b[0]:
            return False
        if a[1] != b[1]:
            return isinstance(a[0], (cst.If, cst.Match))
    return False


def is_optimizer(source: Source, node: cst.BaseExpression) -> bool:
    """Whether an expression is an optimizer of torch's kind: by its constructor, else by its name."""
    made = _constructors(source, node)
    if made:
        return all(_is_optimizer_constructor(source, call) for call in made)
    bare = node
    while isinstance(bare, cst.Subscript):
        bare = bare.value
    name = dotted_name(bare)
    if name is None:
        return False
    last = name.rpartition(".")[2]
    return bool(_OPTIMIZER_NAME.search(last)) and not _NOT_OPTIMIZER_NAME.search(last)


def _constructors(source: Source, node: cst.BaseExpression) -> list[cst.Call]:
    """The calls of classes that may have made the value; empty when any of its bindings is something else."""
    if isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name) and node.value.value == "self":
        bindings = flow.attribute_values(source, node)
    elif isinstance(node, cst.Name):
        bindings = flow.reaching(source, node) or ()
    else:
        return []
    found: list[cst.Call] = []
    for binding in bindings:
        if isinstance(binding.value, cst.Name) and binding.value.value == "None":
            continue
        if binding.kind != "assign" or binding.index is not None or not isinstance(binding.value, cst.Call):
            return []
        callee = dotted_name(binding.value.func)
        if callee is None or not callee.rpartition(".")[2][:1].isupper():
            return []
        found.append(binding.value)
    return found


def _is_optimizer_constructor(source: Source, call: cst.Call) -> bool:
    full = names.qualified(source, call.func)
    if full is not None and full.startswith("torch.optim."):
        return "lr_scheduler" not in full and "swa_utils" not in full
    if isinstance(call.func, cst.Name):
        scope = source.scope_of(call.func).lookup(call.func.value)
        bindings = scope.bindings[call.func.value] if scope is not None else []
        if len(bindings) == 1 and isinstance(bindings[0].node, cst.ClassDef):  # a class of this file: only if it derives from an optimizer
            bases = [dotted_name(base.value) or "" for base in bindings[0].node.bases]
            return any(_OPTIMIZER_CLASS.match(base.rpartition(".")[2]) for base in bases)
    last = (full or dotted_name(call.func) or "").rpartition(".")[2]
    return bool(_OPTIMIZER_CLASS.match(last)) and not _NOT_OPTIMIZER_NAME.search(last)


def is_scaler(source: Source, node: cst.BaseExpression) -> bool:
    """Whether an expression is a gradient scaler."""
    name = dotted_name(node)
    if name is None:
        return False
    made = _constructors(source, node)
    if made:
        return all("caler" in (dotted_name(call.func) or "").rpartition(".")[2] for call in made)
    return "scaler" in name.rpartition(".")[2].lower()


def _read(source: Source, function: cst.FunctionDef | None, depth: int, seen: frozenset[cst.CSTNode]) -> Iterator[TrainingCall]:
    by_function: dict[cst.CSTNode | None, list[cst.Call]] | None = source.memo.get("calls_by_function")
    if by_function is None:
        by_function = source.memo["calls_by_function"] = {}
        for node in source.nodes(cst.Call):
            assert isinstance(node, cst.Call)
            by_function.setdefault(source.function_of(node), []).append(node)
        for found in by_function.values():
            found.sort(key=source.order.__getitem__)
    own = [*by_function.get(function, ()), *_gradient_writes(source, function)]
    for node in sorted(own, key=source.order.__getitem__):
        if not isinstance(node, cst.Call):
            yield TrainingCall("clip", cst.Call(cst.Name("write")), node, source.branches_of(node))
            continue
        if source.enclosing(node, cst.Lambda) is not None and source.function_of(node) is function and not _mentions_clip(source, node):
            continue
        called = flow.local_function(source, node)
        if called is None or _mentions_clip(source, node):
            direct = _classify(source, node)
            if direct is not None:
                yield direct
            continue
        if depth >= _DEPTH or called in seen or called is function:
            continue
        branches = source.branches_of(node)
        for inner in _read(source, called, depth + 1, seen | {called}):
            yield TrainingCall(inner.kind, inner.node, node, (*branches, *inner.branches), inner.owner, inner.scaler, inner.optimizer)


def _gradient_writes(source: Source, function: cst.FunctionDef | None) -> list[cst.CSTNode]:
    """Statements that write a gradient: `p.grad /= norm`, `p.grad.data = ...`, `p.grad = p.grad.clamp(...)`."""
    memo: dict[cst.CSTNode | None, list[cst.CSTNode]] | None = source.memo.get("gradient_writes")
    if memo is None:
        memo = source.memo["gradient_writes"] = {}
        for node in source.nodes(cst.AssignTarget, cst.AugAssign):
            target = dotted_name(node.target)  # type: ignore[attr-defined]
            value = getattr(source.parents.get(node), "value", None) if isinstance(node, cst.AssignTarget) else None
            if (
                target is not None
                and (target.endswith(".grad") or ".grad." in target)
                and not (isinstance(value, cst.Name) and value.value == "None")
            ):
                memo.setdefault(source.function_of(node), []).append(node)
    return memo.get(function, [])


def _mentions_clip(source: Source, node: cst.Call) -> bool:
    callee = (dotted_name(node.func) or (node.func.attr.value if isinstance(node.func, cst.Attribute) else "")).lower()
    return "clip" in callee or "clamp" in callee


def _classify(source: Source, node: cst.Call) -> TrainingCall | None:
    branches = source.branches_of(node)
    callee = dotted_name(node.func)
    method = node.func.attr.value if isinstance(node.func, cst.Attribute) else (callee or "")
    receiver = node.func.value if isinstance(node.func, cst.Attribute) else None
    if "clip" in method.lower() and not (receiver is not None and values.is_other(source, receiver) and method in ("clip",)):
        if method.rstrip("_") not in ("clip",) or _is_gradient(source, node, receiver):
            return TrainingCall("clip", node, node, branches)
        return None
    if method in ("clamp_", "clamp", "mul_", "div_") and _is_gradient(source, node, receiver):
        return TrainingCall("clip", node, node, branches)
    if receiver is None:
        return None
    if method == "unscale_" and node.args:
        return TrainingCall("unscale", node, node, branches, source.code(receiver), receiver, node.args[0].value)
    if method == "backward":
        return _backward(source, node, receiver, branches)
    if method == "zero_grad":
        return TrainingCall("zero", node, node, branches, source.code(receiver))
    if method == "step":
        if not node.args and is_optimizer(source, receiver):
            return TrainingCall("step", node, node, branches, source.code(receiver), None, receiver)
        if node.args and is_scaler(source, receiver) and not node.args[0].star:
            optimizer = node.args[0].value
            return TrainingCall("step", node, node, branches, source.code(optimizer), receiver, optimizer)
    return None


def _is_gradient(source: Source, node: cst.Call, receiver: cst.BaseExpression | None) -> bool:
    texts = [source.code(receiver)] if receiver is not None else []
    texts += [source.code(arg.value) for arg in node.args[:1]]
    return any(re.search(r"\bgrad(ient)?s?\b|_grad\b", text) for text in texts)


def _backward(source: Source, node: cst.Call, receiver: cst.BaseExpression, branches: tuple[Branch, ...]) -> TrainingCall | None:
    if isinstance(receiver, cst.Call) and isinstance(receiver.func, cst.Attribute) and receiver.func.attr.value == "scale":
        scaler = receiver.func.value
        return TrainingCall("scaled backward", node, node, branches, source.code(scaler), scaler)
    name = (dotted_name(receiver) or "").lower()
    if any(word in name for word in _TRAINERS) or name in ("self", "super"):
        return TrainingCall("opaque", node, node, branches)
    if "torch.autograd" in (names.qualified(source, receiver) or ""):
        return TrainingCall("backward", node, node, branches)
    if (
        node.args
        and node.args[0].keyword is None
        and "loss" in source.code(node.args[0].value)
        and "loss" not in name
        and "_like" not in source.code(node)
    ):
        return TrainingCall("opaque", node, node, branches)  # somebody's `backward(loss)`: its own business
    return TrainingCall("backward", node, node, branches)


def steps(source: Source, node: cst.Call) -> Iterator[tuple[TrainingCall, Sequence[TrainingCall]]]:
    """The step that `node` is, with what precedes it, once for each function from which it is seen.

    Seen from the function it is written in; if no backward precedes it there, also from the callers of that function.
    """
    if not isinstance(node.func, cst.Attribute) or node.func.attr.value != "step":
        return
    here = source.function_of(node)
    pending: list[tuple[cst.FunctionDef | None, int]] = [(here, 0)]
    visited: set[cst.FunctionDef | None] = set()
    while pending:
        function, depth = pending.pop()
        if function in visited:
            continue
        visited.add(function)
        sequence = calls(source, function)
        for position, found in enumerate(sequence):
            if found.node is not node:
                continue
            before = [c for c in sequence[:position] if not are_exclusive(c.branches, found.branches)]
            yield found, before
            if function is not None and depth < _DEPTH and not any(c.kind in ("backward", "scaled backward") for c in before):
                pending.extend((caller, depth + 1) for caller in callers(source, function))
