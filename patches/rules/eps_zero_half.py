"""NS301 eps-zero-half."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

import libcst as cst

from patches import dtypes
from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.settings import Settings
from patches.source import Source

_LARGEST_ZERO = 3.0e-8  # half of float16's smallest number, 5.96e-8, and what rounds to zero
_FAR_FROM_ZERO = 1e-3


class EpsZeroHalf(AbstractRule):
    """A guard that float16 rounds to zero.

    What it finds: an epsilon of at most 3e-8 that is added to a floating tensor, or is the lower end of its
    clamp, or is given to `normalize` or `cosine_similarity`, in code that may run in float16: the file
    speaks of half, float16 or autocast, or `--dtype float16` is given.

    Why it is bad: float16's smallest number is 5.96e-8. `x + 1e-8` is x, `clamp(min=1e-12)` is
    `clamp(min=0)`: the division or logarithm is as unguarded as it was.

    Example:
        y = x / (x.norm(dim=-1, keepdim=True) + 1e-8)

    Use instead:
        y = x / (x.norm(dim=-1, keepdim=True) + max(1e-8, torch.finfo(x.dtype).tiny))

    Fix safety: safe. `tiny` is 1.2e-38 in float32 and bfloat16 and 2.2e-308 in float64: the larger of the two
    is the old constant there, bit for bit. In float16, where the constant was 0, it becomes 6.1e-5. That
    makes the quotient finite; a float16 gradient of 1 / x at 0 no epsilon makes finite: compute it in float32.
    Where the value may be an integer, for which torch.finfo raises, the dtype asked for is that of the sum:
    `torch.finfo(torch.result_type(x, 1e-8)).tiny`.

    References: IEEE 754-2019 binary16; F.normalize with its default eps is NaN for a zero float16 vector.
    """

    code = "NS301"
    triggers = ("e-8", "e-9", "e-08", "e-09", "e-1", "e-2", "e-3", "eps", "EPS", "Eps", "TINY", "tiny", "E-", "0.0000000")
    nodes = (cst.BinaryOperation, cst.Call)

    def is_relevant(self, text: str, words: Set[str], settings: Settings) -> bool:
        return (settings.audit or dtypes.is_float16_meant(text, settings)) and super().is_relevant(text, words, settings)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, (cst.BinaryOperation, cst.Call))
        if not (source.settings.audit or dtypes.is_float16_in_sight(source)):
            return
        found = _added(source, node) if isinstance(node, cst.BinaryOperation) else _given(source, node)
        if found is None:
            return
        guarded, epsilon, at = found
        value = m.value_of(source, guarded)
        if (
            value.kind in ("number", "integer", "numpy", "other", "module")
            or value.low > _FAR_FROM_ZERO
            or value.dtype in ("float64", "float32")
            or value.is_integer
        ):
            return
        if not dtypes.is_float16_in_sight(source) and (value.origin in ("noise", "constant") or _is_norm(source, guarded)):
            return  # the audit's list, read without half in sight: under a norm, or for what the code itself makes, the guard does no harm (E1)
        if m.no_grad_at(source, node) or not _is_tensor(source, guarded, node) or _is_no_guard(source, epsilon, guarded, node):
            return
        dtype = dtypes.carrier(source, guarded)
        if dtype is None or _is_shared(source, epsilon, at):
            yield self.hit(at)
            return
        finfo = m.spell(source, node, "torch.finfo")
        needs = [finfo.needs_import]
        text = f"{dtype}.dtype"
        if not dtypes.is_floating(source, guarded):  # finfo raises for integers; what an epsilon makes of them is floating
            result_type = m.spell(source, node, "torch.result_type")
            needs.append(result_type.needs_import)
            text = f"{result_type.text}({dtype}, {source.code(epsilon)})"
        yield self.hit(at, *replace_with(epsilon, f"max({source.code(epsilon)}, {finfo.text}({text}).tiny)", *needs))


def _is_tensor(source: Source, guarded: cst.BaseExpression, node: cst.CSTNode) -> bool:
    """A tensor for certain, or by its place: a reduction, an operand beside a tensor, or anything unknown when the user says that it is float16."""
    if m.is_tensor(source, guarded) or source.settings.dtype is not None:
        return True
    if m.operation(source, guarded, "sum", "mean", "std", "var", "max", "min", "prod", result_is_tensor=True) is not None:
        return m.imports_torch(source)
    parent = source.parents.get(node)
    if isinstance(parent, cst.BinaryOperation):
        return m.is_tensor(source, parent.left if parent.right is node else parent.right)
    call = source.parents.get(parent) if isinstance(parent, cst.Arg) else None
    return call is not None and m.operation(source, call, "log", "sqrt", "rsqrt", "log2", "log10", "reciprocal", "div") is not None


def _is_epsilon(source: Source, node: cst.BaseExpression | None) -> bool:
    value = m.number(source, node)
    return value is not None and 0 < value <= _LARGEST_ZERO


def _added(source: Source, node: cst.BinaryOperation) -> tuple[cst.BaseExpression, cst.BaseExpression, cst.BaseExpression] | None:
    sides = m.binary(node, "+")
    if sides is None:
        return None
    for guarded, epsilon in (sides, sides[::-1]):
        if _is_epsilon(source, epsilon):
            return guarded, epsilon, node
    return None


def _given(source: Source, node: cst.Call) -> tuple[cst.BaseExpression, cst.BaseExpression, cst.BaseExpression] | None:
    found = m.operation(source, node, "clamp", "clamp_min", "normalize", "cosine_similarity", "add")
    if found is None:
        return None
    match found.name:
        case "clamp" | "clamp_min":
            epsilon = found.argument(0, "min")
        case "add":
            epsilon = found.argument(0, "other")
        case _:
            epsilon = found.keyword("eps")
    if epsilon is None or not _is_epsilon(source, epsilon):
        return None
    return found.input, epsilon, node


def _is_shared(source: Source, epsilon: cst.BaseExpression, at: cst.CSTNode) -> bool:
    """Whether the constant is no constant of the caller's at all: a tensor made for it has a dtype of its own."""
    return isinstance(epsilon, cst.Call) and not source.is_inside(at, epsilon) and m.is_tensor(source, epsilon)


def _is_norm(source: Source, node: cst.BaseExpression) -> bool:
    return m.operation(source, m.definition(source, node), "norm", "linalg.norm", "linalg.vector_norm") is not None


def _is_no_guard(source: Source, epsilon: cst.BaseExpression, guarded: cst.BaseExpression, node: cst.CSTNode) -> bool:
    """A coefficient (`1 / 47900160 + x`), a table made in a constructor, freshly drawn noise (float32), or a zero that torch.where looks after."""
    function = source.function_of(node)
    if isinstance(epsilon, cst.BinaryOperation) or (function is not None and function.name.value == "__init__"):
        return True
    if re.search(r"\brand(n|int)?(_like)?\(", source.code(guarded)) and not source.settings.dtype:
        return True
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, cst.FunctionDef):
            return False
        where = m.operation(source, ancestor, "where")
        if where is not None and not source.is_inside(node, where.input) and isinstance(m.definition(source, where.input), cst.Comparison):
            return True
        if isinstance(ancestor, cst.If) and ".dtype" in source.code(ancestor.test):
            return True
    return False
