"""NS401 mask-neg-inf."""

from __future__ import annotations

import math
from collections.abc import Iterator

import libcst as cst

from patches import dtypes, flow, masking
from patches import matching as m
from patches.edits import AddImport, AddLines, Edit, Replace, Unfixable
from patches.rules.base import AbstractRule, Hit
from patches.source import Source


class MaskNegInf(AbstractRule):
    """A mask of -inf before a softmax, where a row may have no entry left.

    What it finds: `masked_fill(mask, -inf)` (or `torch.where(mask, scores, -inf)`, or `scores[mask] = -inf`) whose result
    goes into a softmax of the same function. Masks that leave every row an entry stay quiet: causal and triangular ones,
    diagonals, top-k and vocabulary filters.

    Why it is bad: the softmax of a row of -inf is exp(-inf - (-inf)) = NaN, and so is every gradient behind it. An
    empty sequence, a batch padded by a whole row, a node without neighbours is enough.

    Example:
        score = score.masked_fill(~mask, float("-inf"))
        attention = F.softmax(score, dim=-1)

    Use instead:
        score = score.masked_fill(~mask, torch.finfo(score.dtype).min)
        attention = F.softmax(score, dim=-1).masked_fill(~mask, 0.0)

    Fix safety: unsafe. Rows with an entry keep their values bit for bit (exp(finfo.min - max) is exactly 0). A row
    without one becomes zeros instead of NaN: the finite constant alone would spread its weight evenly over forbidden
    keys. Never add two such masks: min + min is -inf again; where something is added behind the fill, only shown.

    References: torch.nn.functional.scaled_dot_product_attention (boolean masks); PyTorch issue 41508 (NaN for fully masked rows).
    """

    code = "NS401"
    words = ("inf", "INF", "Inf", "infty", "NINF", "infinity")
    nodes = (cst.Call, cst.Assign)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.Assign):
            yield from self._assigned(node, source)
            return
        found = masking.fill(source, node)
        if found is None or m.number(source, found.value) != -math.inf:
            return
        softmax = softmax_of(source, found)
        if softmax is None or masking.leaves_an_entry(source, found.mask, found.node) or _is_causal_place(source, found.node):
            return
        try:
            edits = _fix(source, found, softmax)
        except Unfixable:
            edits = ()
        yield self.hit(found.node, *edits, also=(softmax.node,))

    def _assigned(self, node: cst.Assign, source: Source) -> Iterator[Hit]:
        """`scores[mask] = -inf` and a softmax of those scores behind it. Only shown: the mask may have fewer axes than the scores."""
        found = masking.assigned_fill(source, node)
        if found is None or m.number(source, node.value) != -math.inf:
            return
        scores, mask = found
        softmax = next((s for s in _softmaxes(source, node) if _is_read(source, node, scores.value, s.input)), None)
        if softmax is None or masking.leaves_an_entry(source, mask, node) or _is_causal_place(source, node):
            return
        yield self.hit(node, also=(softmax.node,))


def _is_causal_place(source: Source, place: cst.CSTNode) -> bool:
    """A generic mask in a class or function that calls itself causal, or whose mask another part of the file makes with tril."""
    owner = source.class_of(place)
    function = source.function_of(place)
    names = [owner.name.value if owner is not None else "", function.name.value if function is not None else ""]
    return any("causal" in name.lower() or "autoregressive" in name.lower() for name in names)


def softmax_of(source: Source, found: masking.Fill) -> m.Operation | None:
    """The softmax that the filled scores go into, in the same function; the first, if there are several."""
    return next(_softmaxes_of(source, found), None)


def _softmaxes(source: Source, at: cst.CSTNode) -> Iterator[m.Operation]:
    """The softmaxes in the function around `at`."""
    softmaxes: list[m.Operation] | None = source.memo.get("softmaxes")
    if softmaxes is None:
        calls = [m.operation(source, call, "softmax") for call in source.nodes(cst.Call)]
        softmaxes = source.memo["softmaxes"] = [call for call in calls if call is not None]
    function = source.function_of(at)
    yield from (softmax for softmax in softmaxes if source.function_of(softmax.node) is function)


def _softmaxes_of(source: Source, found: masking.Fill) -> Iterator[m.Operation]:
    for softmax in _softmaxes(source, found.node):
        if masking.flows_into(source, found.node, softmax.input):
            yield softmax
        elif found.inplace and isinstance(found.scores, cst.Name) and _reads_after(source, found, softmax.input):
            yield softmax


def _reads_after(source: Source, found: masking.Fill, use: cst.BaseExpression) -> bool:
    """Whether `use` reads the name that was filled in place, not assigned again in between."""
    assert isinstance(found.scores, cst.Name)
    return _is_read(source, found.node, found.scores.value, use)


def _is_read(source: Source, place: cst.CSTNode, name: str, use: cst.BaseExpression) -> bool:
    """Whether `use` reads, behind `place`, a name that is not assigned again in between."""
    written = source.order[place]
    for read in flow.names_in(source, use):
        if read.value == name and source.order[read] > written:
            scope = source.scope_of(read).lookup(name)
            return scope is not None and not any(written < b.order <= source.order[read] and b.kind == "assign" for b in scope.bindings[name])
    return False


def _fix(source: Source, found: masking.Fill, softmax: m.Operation) -> tuple[Edit, ...]:
    direct = _is_behind_fills(source, found.node, softmax.input)
    bound = isinstance(softmax.input, cst.Name) and (
        _is_behind_fills(source, found.node, _bound(source, softmax.input)) or _is_statement(source, found, softmax.input)
    )
    if len(list(_softmaxes_of(source, found))) > 1:
        raise Unfixable("each softmax of the scores would need its own rows zeroed")
    zeroed = () if direct or bound else _zeroed_under_the_test(source, found, softmax)
    if not (direct or bound or zeroed) or not m.is_pure(source, found.mask) or not flow.is_stable(source, found.mask, softmax.node):
        raise Unfixable("the scores change shape or value between the fill and the softmax, or the mask does")
    base = found.scores
    while (inner := masking.fill(source, base)) is not None and not inner.inplace:
        base = inner.scores  # the mask of a mask: the dtype is that of what both fill
    scores, extra = dtypes.named(source, base, "scores")
    finfo = m.spell(source, found.node, "torch.finfo")
    imports = (AddImport(finfo.needs_import),) if finfo.needs_import is not None else ()
    parts: dict[cst.CSTNode, str] = {found.value: f"{finfo.text}({scores}.dtype).min"}
    if extra:
        parts[base] = scores
    mask = _negated(source, found.mask) if found.keep else m.argument(source, found.mask)
    if direct:
        return (Replace(softmax.node, f"{m.rewritten(source, softmax.node, parts)}.masked_fill({mask}, 0.0)"), *extra, *imports)
    filled = Replace(found.node, m.rewritten(source, found.node, parts))
    if zeroed:
        test, name = zeroed
        if name:
            lines = (f"if {test}:", f"{source.module.default_indent}{name} = {name}.masked_fill({mask}, 0.0)")
            return (filled, AddLines(softmax.node, lines, "after"), *extra, *imports)
        name, made = dtypes.named(source, softmax.node, "weights")
        lines = (f"if {test}:", f"{source.module.default_indent}{name} = {name}.masked_fill({mask}, 0.0)")
        ahead = [AddLines(edit.node, (*edit.lines, *lines), "before") for edit in made if isinstance(edit, AddLines)]
        return (filled, *ahead, Replace(softmax.node, name), *extra, *imports)
    return (filled, Replace(softmax.node, f"{m.rewritten(source, softmax.node, {})}.masked_fill({mask}, 0.0)"), *extra, *imports)


def _zeroed_under_the_test(source: Source, found: masking.Fill, softmax: m.Operation) -> tuple[str, str] | tuple[()]:
    """The test under which the fill runs and the name that the softmax gets ("" if it gets none), where the softmax runs with and without it:

    if mask is not None:
        scores = scores.masked_fill(mask, -inf)
    weights = softmax(scores)
    """
    inside, outside = source.branches_of(found.node), source.branches_of(softmax.node)
    statement = source.parents.get(softmax.node)
    if len(inside) != len(outside) + 1 or inside[: len(outside)] != outside or not isinstance(softmax.input, cst.Name):
        return ()
    name = ""
    if isinstance(statement, cst.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0].target, cst.Name):
        name = statement.targets[0].target.value
    condition, arm = inside[-1]
    if not isinstance(condition, cst.If) or arm != "body" or condition.orelse is not None or not m.is_pure(source, condition.test):
        return ()
    reaching = flow.reaching(source, softmax.input)
    if not reaching or not flow.is_stable(source, condition.test, softmax.node):
        return ()
    last = max(reaching, key=lambda binding: binding.order)
    in_place = found.inplace and _reads_after(source, found, softmax.input) and isinstance(source.parents.get(found.node), cst.Expr)
    if not in_place and (last.value is None or last.kind != "assign" or not _is_behind_fills(source, found.node, last.value)):
        return ()
    return m.argument(source, condition.test), name


def _bound(source: Source, name: cst.Name) -> cst.BaseExpression:
    """The one expression that was assigned to the name, or the name itself (it may be `score = score.masked_fill(...)`)."""
    found = flow.reaching(source, name)
    if found is None or len(found) != 1 or found[0].kind != "assign" or found[0].index is not None or found[0].value is None:
        return name
    return found[0].value if found[0].branches == source.branches_of(name)[: len(found[0].branches)] else name


def _is_behind_fills(source: Source, made: cst.CSTNode, use: cst.BaseExpression) -> bool:
    """Whether `use` is the fill itself, with nothing but other fills after it."""
    while use is not made:
        outer = masking.fill(source, use)
        if outer is None or outer.inplace:
            return False
        use = outer.scores
    return True


def _is_statement(source: Source, found: masking.Fill, use: cst.Name) -> bool:
    """`scores.masked_fill_(mask, -inf)` on a line of its own, and the softmax of that very name."""
    return (
        found.inplace
        and isinstance(found.scores, cst.Name)
        and found.scores.value == use.value
        and isinstance(source.parents.get(found.node), cst.Expr)
        and source.branches_of(found.node) == source.branches_of(use)
    )


def _negated(source: Source, mask: cst.BaseExpression) -> str:
    if isinstance(mask, cst.UnaryOperation) and isinstance(mask.operator, cst.BitInvert):
        return m.argument(source, mask.expression)
    return f"~{m.operand(source, mask)}"
