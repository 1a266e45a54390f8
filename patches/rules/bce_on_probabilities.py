"""NS602 bce-on-probabilities."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import flow, operations
from patches import matching as m
from patches.edits import AddImport, Edit, Replace, Unfixable
from patches.rules.base import AbstractRule, Hit
from patches.source import Source


class BceOnProbabilities(AbstractRule):
    """Binary cross entropy of a sigmoid's output.

    What it finds: `F.binary_cross_entropy` or `nn.BCELoss` on `sigmoid(x)`: written there, through one local name, or as the last
    layer of a `nn.Sequential` or the last step of a `forward` of the same file.

    Why it is bad: from x = 17 on (float32; 8 in float16) the sigmoid is exactly 1. The loss of a confident mistake is then torch's
    clamp at 100 whatever x is, and its gradient is 0: the worst errors are not learned from. Under autocast it raises.

    Example:
        loss = F.binary_cross_entropy(torch.sigmoid(x), y)

    Use instead:
        loss = F.binary_cross_entropy_with_logits(x, y)

    Fix safety: safe where the sigmoid is written in the call or has a name in the same function: the same function to rounding where
    the old one was not saturated, and the exact value where it was. Display where the sigmoid ends a network: then the network's
    output changes its meaning for everybody who reads it.

    References: torch.nn.BCEWithLogitsLoss (log-sum-exp form); the audit's remedy of clamping p at 1 - eps is infinite in float16.
    """

    code = "NS602"
    triggers = ("binary_cross_entropy", "BCELoss")
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.Call)
        found = m.operation(source, node, "binary_cross_entropy")
        if found is not None and found.form == "function":
            yield from self._function(node, found, source)
            return
        constructor = operations.module_constructor(source, node.func)
        if (
            constructor is None
            or constructor is node
            or m.qualified(source, constructor.func) not in ("torch.nn.BCELoss", "torch.nn.modules.loss.BCELoss")
        ):
            return
        if not node.args or node.args[0].keyword is not None or node.args[0].star:
            return
        yield from self._module(node, constructor, source)

    def _function(self, node: cst.Call, found: m.Operation, source: Source) -> Iterator[Hit]:
        made = m.definition(source, found.input)
        sigmoid = m.operation(source, made, "sigmoid")
        if sigmoid is None or sigmoid.inplace:
            if _ends_in_sigmoid(source, made):
                yield self.hit(node)
            return
        try:
            text, extra = (m.argument(source, sigmoid.input), ()) if made is found.input else m.reuse(source, sigmoid.input, "logits")
        except Unfixable:
            yield self.hit(node)
            return
        if any(arg.value is found.input and arg.keyword is not None for arg in node.args) and text != text.strip():
            return
        call, needs = _with_logits(source, node)
        parts: dict[cst.CSTNode, str] = {node.func: call, found.input: text}
        imports = (AddImport(needs),) if needs is not None else ()
        yield self.hit(node, Replace(node, m.rewritten(source, node, parts)), *extra, *imports)

    def _module(self, node: cst.Call, constructor: cst.Call, source: Source) -> Iterator[Hit]:
        probabilities = node.args[0].value
        made = m.definition(source, probabilities)
        sigmoid = m.operation(source, made, "sigmoid")
        if sigmoid is None:
            if _ends_in_sigmoid(source, made):
                yield self.hit(node)
            return
        yield self.hit(node, *_module_fix(source, constructor, node))


def _with_logits(source: Source, node: cst.Call) -> tuple[str, str | None]:
    if isinstance(node.func, cst.Attribute):
        return source.code(node.func.with_changes(attr=cst.Name("binary_cross_entropy_with_logits"))), None
    spelling = m.spell(source, node, "torch.nn.functional.binary_cross_entropy_with_logits")
    return spelling.text, spelling.needs_import


def _module_fix(source: Source, constructor: cst.Call, node: cst.Call) -> tuple[Edit, ...]:
    """The loss module and every call of it at once, if all of them are fed by a sigmoid written in the call; else nothing."""
    if constructor is node.func:
        calls = [node]
    else:
        calls = []
        uses = [
            call for call in source.nodes(cst.Call) if isinstance(call, cst.Call) and operations.module_constructor(source, call.func) is constructor
        ]
        calls.extend(call for call in uses if call is not constructor)
        name = source.code(node.func)
        if source.text.count(name) < len(calls) + 1 or _is_read_elsewhere(source, node.func, calls):
            return ()
    edits: list[Edit] = []
    for call in calls:
        sigmoid = m.operation(source, call.args[0].value, "sigmoid") if call.args else None
        if sigmoid is None or sigmoid.inplace or call.args[0].keyword is not None:
            return ()
        edits.append(Replace(call.args[0].value, m.argument(source, sigmoid.input)))
    if isinstance(constructor.func, cst.Attribute):
        edits.append(Replace(constructor.func, source.code(constructor.func.with_changes(attr=cst.Name("BCEWithLogitsLoss")))))
    else:
        spelling = m.spell(source, constructor, "torch.nn.BCEWithLogitsLoss")
        edits.append(Replace(constructor.func, spelling.text))
        if spelling.needs_import is not None:
            edits.append(AddImport(spelling.needs_import))
    return tuple(edits)


def _is_read_elsewhere(source: Source, loss: cst.BaseExpression, calls: list[cst.Call]) -> bool:
    """Whether the loss module is handed on: any mention of it that is neither its making nor one of these calls."""
    text = source.code(loss)
    called = {call.func for call in calls}
    for node in source.nodes(cst.Name, cst.Attribute):
        assert isinstance(node, (cst.Name, cst.Attribute))
        if node in called or type(node) is not type(loss) or source.code(node) != text:
            continue
        parent = source.parents.get(node)
        if isinstance(parent, (cst.AssignTarget, cst.Attribute)):
            continue
        return True
    return False


def _ends_in_sigmoid(source: Source, node: cst.BaseExpression, depth: int = 0) -> bool:
    """Whether a value is the output of a network of this file that ends in a sigmoid."""
    if not isinstance(node, cst.Call) or depth > 4:
        return False
    found = m.operation(source, node)
    if found is not None and found.form == "method" and found.name in ("squeeze", "view", "reshape", "flatten"):
        return _ends_in_sigmoid(source, m.definition(source, found.input), depth + 1)
    constructor = operations.module_constructor(source, node.func)
    if constructor is not None and m.qualified(source, constructor.func) == "torch.nn.Sequential" and constructor.args:
        last = constructor.args[-1].value
        return isinstance(last, cst.Call) and m.qualified(source, last.func) == "torch.nn.Sigmoid"
    forward = _forward_of(source, node)
    if forward is None:
        return False
    results = flow.returned(source, forward)
    return bool(results) and all(
        m.operation(source, m.definition(source, r), "sigmoid") is not None or _ends_in_sigmoid(source, m.definition(source, r), depth + 1)
        for r in results
    )


def _forward_of(source: Source, call: cst.Call) -> cst.FunctionDef | None:
    """The `forward` that `net(x)` runs, for a net made once from a class of this file (possibly moved to a device)."""
    callee = call.func
    if isinstance(callee, cst.Attribute) and isinstance(callee.value, cst.Name) and callee.value.value == "self":
        bindings = list(flow.attribute_values(source, callee))
    elif isinstance(callee, cst.Name):
        bindings = list(flow.reaching(source, callee) or ())
    else:
        return None
    made = {b.value for b in bindings if b.kind == "assign" and b.index is None}
    constructor = next(iter(made)) if len(made) == 1 else None
    while (
        isinstance(constructor, cst.Call)
        and isinstance(constructor.func, cst.Attribute)
        and constructor.func.attr.value in ("to", "cuda", "cpu", "float", "train")
    ):
        constructor = constructor.func.value
    if not isinstance(constructor, cst.Call) or not isinstance(constructor.func, cst.Name):
        return None
    scope = source.scope_of(constructor.func).lookup(constructor.func.value)
    classes = [b.node for b in (scope.bindings[constructor.func.value] if scope is not None else ()) if isinstance(b.node, cst.ClassDef)]
    if len(classes) != 1:
        return None
    functions = [b.node for b in source.scopes[classes[0]].bindings.get("forward", ()) if isinstance(b.node, cst.FunctionDef)]
    return functions[0] if len(functions) == 1 else None
