"""NS303 div-norm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

import libcst as cst

from patches import dtypes, flow
from patches import matching as m
from patches.edits import Edit, Replace
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.settings import Settings
from patches.source import Source

_KEEPS_ZERO = tuple("view reshape flatten squeeze unsqueeze tanh float half double to contiguous transpose permute index_select".split())
_COUNTED = re.compile(r"(?i)mask|valid|count|(^|_)(num|n|len|lengths?)(_|$)|==|!=|[<>]")
"""What is summed to count entries."""
_NORMS = ("norm", "linalg.norm", "linalg.vector_norm")


class DivNorm(AbstractRule):
    """A vector divided by its own norm, unguarded.

    What it finds: `x / x.norm(...)`, also through a local name and with `/=`, where gradients flow, nothing is
    added to the norm or clamps it, and x is neither noise nor a constant.

    Why it is bad: a zero vector (padding, a dead unit, an empty neighbourhood) gives 0 / 0 = NaN, and one row of
    NaN spoils every gradient of the batch.

    Example:
        z = h / h.norm(dim=-1, keepdim=True)

    Use instead:
        z = F.normalize(h, dim=-1, eps=torch.finfo(h.dtype).tiny)

    At a line that a run has seen divide by 0 (`--from-report`) any quotient is a finding: a divisor that counts
    (`mask.sum(1)`) is kept at 1 or more, one that is never negative at 1e-8 or more; another is only shown.

    Fix safety: unsafe. Vectors longer than `tiny` (6.1e-5 in float16) give the same value to rounding; shorter ones
    are no longer scaled to length 1, and a zero vector gives zeros. F.normalize's default eps, 1e-12, is not
    used: it is 0 in float16 and leaves the NaN in place.

    References: torch.nn.functional.normalize; Zhang and Sennrich 2019 (RMSNorm) for guarding inside a root.
    """

    code = "NS303"
    words = ("norm", "vector_norm")
    nodes = (cst.BinaryOperation, cst.AugAssign)

    def is_relevant(self, text: str, words: Set[str], settings: Settings) -> bool:
        """Also any file in which a division failed."""
        return (settings.fired and "/" in text) or super().is_relevant(text, words, settings)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.AugAssign):
            if not isinstance(node.operator, cst.DivideAssign) or not isinstance(node.target, (cst.Name, cst.Attribute, cst.Subscript)):
                return
            dividend: cst.BaseExpression = node.target
            divisor = node.value
        else:
            assert isinstance(node, cst.BinaryOperation)
            sides = m.binary(node, "/")
            if sides is None:
                return
            dividend, divisor = sides
        norm = _norm(source, divisor)
        if norm is None or source.code(norm.input).strip() != source.code(dividend).strip():
            if source.settings.fired:
                yield from self._failed(source, node, divisor)
            return
        if m.no_grad_at(source, node):
            return
        value = m.value_of(source, norm.input)
        if value.detached or value.kind in ("numpy", "number", "integer", "other") or value.origin in ("noise", "constant") or value.low > 0:
            return
        if (
            isinstance(dividend, cst.Name)
            and norm.node is not divisor
            and not isinstance(node, cst.AugAssign)
            and not m.same(source, norm.input, dividend)
        ):
            return
        if not (source.settings.fired or _may_be_zero(source, norm.input)) or _is_tested(source, node, divisor):
            return
        where = divisor if isinstance(node, cst.AugAssign) else node
        yield self.hit(where, *self._fix(source, node, dividend, norm))

    def _failed(self, source: Source, node: cst.CSTNode, divisor: cst.BaseExpression) -> Iterator[Hit]:
        """A quotient that a run has seen divide by 0: a count is at least 1, what is never negative at least 1e-8.

        A divisor of any sign is only shown: how it is to be kept from 0 is its author's to say.
        """
        value = m.value_of(source, divisor)
        if value.kind in ("numpy", "number", "integer", "other", "module") or m.number(source, divisor) is not None or value.low > 0:
            return
        made = m.definition(source, divisor)
        total = m.operation(source, made, "sum", result_is_tensor=True)
        if total is not None and (_COUNTED.search(source.code(total.input)) or m.value_of(source, total.input).is_integer):
            edits: tuple[Edit, ...] = (Replace(divisor, f"{m.operand(source, divisor)}.clamp(min=1)"),)
        elif value.low >= 0 and not m.is_half_in_sight(source):
            edits = (Replace(divisor, f"{m.operand(source, divisor)}.clamp(min=1e-8)"),)
        else:
            edits = ()
        yield self.hit(node, *edits, last_resort=True)

    def _fix(self, source: Source, node: cst.CSTNode, dividend: cst.BaseExpression, norm: m.Operation) -> tuple[Edit, ...]:
        dtype = dtypes.carrier(source, dividend)
        dim = norm.argument(1, "dim", "axis")
        order = norm.argument(0, "p", "ord")
        if isinstance(node, cst.AugAssign) or dtype is None or dim is None or not _is_true(norm.argument(2, "keepdim", "keepdims")):
            return ()
        if not m.is_pure(source, dividend) or (order is not None and m.number(source, order) != 2) or isinstance(dim, (cst.Tuple, cst.List)):
            return ()
        if norm.keyword("dtype", "out") is not None:
            return ()
        call = m.spell(source, node, "torch.nn.functional.normalize")
        finfo = m.spell(source, node, "torch.finfo")
        text = f"{call.text}({m.argument(source, dividend)}, dim={source.code(dim)}, eps={finfo.text}({dtype}.dtype).tiny)"
        return replace_with(node, text, call.needs_import, finfo.needs_import)


def _norm(source: Source, divisor: cst.BaseExpression) -> m.Operation | None:
    made = m.definition(source, divisor)
    if made is divisor and isinstance(divisor, cst.Name):
        return None
    found = m.operation(source, made, *_NORMS)
    if (
        found is None
        and isinstance(made, cst.Call)
        and isinstance(made.func, cst.Attribute)
        and made.func.attr.value in ("unsqueeze", "view", "reshape")
    ):
        found = m.operation(source, made.func.value, *_NORMS)
    return None if found is None or found.inplace else found


def _is_true(node: cst.BaseExpression | None) -> bool:
    return isinstance(node, cst.Name) and node.value == "True"


def _may_be_zero(source: Source, node: cst.BaseExpression, depth: int = 0) -> bool:
    """Whether a zero vector is to be expected: a caller's argument, a difference, what a ReLU leaves; not the output of a network or of a solver."""
    if depth > 5:
        return False
    if m.operation(source, node, "relu", "relu6") is not None:
        return True
    if isinstance(node, cst.Name):
        found = flow.reaching(source, node)
        if not found:
            return False
        return any(
            (b.kind == "parameter" and source.scope_of(node).kind != "lambda")
            or (b.kind == "assign" and b.value is not None and b.index is None and _may_be_zero(source, b.value, depth + 1))
            for b in found
        )
    if isinstance(node, cst.Subscript):
        chosen = any(isinstance(e.slice, cst.Index) and isinstance(e.slice.value, cst.Comparison) for e in node.slice)
        return not chosen and _may_be_zero(source, node.value, depth + 1)  # x[x.sum(1) != 0] has been looked after
    if isinstance(node, cst.BinaryOperation):
        if isinstance(node.operator, cst.Subtract):
            return True
        return isinstance(node.operator, cst.Multiply) and (_may_be_zero(source, node.left, depth + 1) or _may_be_zero(source, node.right, depth + 1))
    if isinstance(node, cst.Call):
        found_operation = m.operation(source, node)
        return found_operation is not None and found_operation.name in _KEEPS_ZERO and _may_be_zero(source, found_operation.input, depth + 1)
    return False


def _is_tested(source: Source, node: cst.CSTNode, divisor: cst.BaseExpression) -> bool:
    """Whether the division stands under a test of the norm, or behind one that leaves: `x / n if n > 0 else x`, `if n < eps: break`."""
    text = source.code(divisor)
    function = source.function_of(node)
    for test in source.nodes(cst.If):
        assert isinstance(test, cst.If)
        if source.order[test] < source.order[node] and source.function_of(test) is function and text in source.code(test.test) and _leaves(test.body):
            return True
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, (cst.If, cst.IfExp)) and text in source.code(ancestor.test):
            return True
        if isinstance(ancestor, cst.FunctionDef):
            return False
    return False


def _leaves(body: cst.BaseSuite) -> bool:
    last = body.body[-1] if body.body else None
    if isinstance(last, cst.SimpleStatementLine):
        last = last.body[-1]
    return isinstance(last, (cst.Break, cst.Continue, cst.Return, cst.Raise))
