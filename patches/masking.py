"""What the rules of family 4 share: fills of a tensor under a mask, and masks that leave every row an entry."""

from __future__ import annotations

import re
from dataclasses import dataclass

import libcst as cst

from patches import flow
from patches import matching as m
from patches.source import Source

_NEVER_EMPTY = re.compile(
    r"causal|tril|triu|future|subsequent|look_?ahead|autoregressive|diag|\beye\b|self_mask|top_?k|top_?p|kth|nucleus|sorted|cumsum|remove|filter|"
    r"suppress|banned|forbid|vocab|(?<![a-z])eos|(?<![a-z])bos|illegal|legal|action|avail|window|band|upper|lower|identity|threshold|beam|ngram|visited|tgt_mask|"
    r"lengths?_to_|sequence_mask|mask_from_len|get_mask_from|len_mask|make_pad_mask",
    re.IGNORECASE,
)
_MASK_NAME = re.compile(r"(^|_)masks?(_|\d|$)")


@dataclass(frozen=True, slots=True, eq=False)
class Fill:
    """`scores` with `value` written where `mask` holds (`keep`: where it does not, as in torch.where)."""

    node: cst.Call
    scores: cst.BaseExpression
    mask: cst.BaseExpression
    value: cst.BaseExpression
    keep: bool = False
    inplace: bool = False


def fill(source: Source, node: cst.CSTNode) -> Fill | None:
    """A `masked_fill`, in any spelling, or a `torch.where` with a constant as its third operand."""
    found = m.operation(source, node, "masked_fill", "where")
    if found is None:
        return None
    if found.name == "masked_fill":
        mask, value = found.argument(0, "mask"), found.argument(1, "value")
        return Fill(found.node, found.input, mask, value, inplace=found.inplace) if mask is not None and value is not None else None
    first, second = found.argument(0, "input", "self", "other"), found.argument(1, "other")
    if first is None or second is None:
        return None
    if found.form == "method":  # scores.where(mask, value)
        return Fill(found.node, found.input, first, second, keep=True)
    if m.number(source, second) is not None:
        return Fill(found.node, first, found.input, second, keep=True)
    if m.number(source, first) is not None:
        return Fill(found.node, second, found.input, first)
    return None


def copies(source: Source, index: cst.BaseSlice) -> bool:
    """Whether an index is a mask, an index tensor or a list, for certain."""
    if not isinstance(index, cst.Index):
        return False
    expression = flow.assigned(source, index.value)
    if isinstance(expression, cst.List):
        return True
    if isinstance(expression, cst.UnaryOperation) and isinstance(expression.operator, cst.BitInvert):
        return m.value_of(source, expression.expression).kind in ("tensor", "unknown")
    if isinstance(expression, cst.Comparison):
        sides = (expression.left, *(target.comparator for target in expression.comparisons))
        kinds = {m.value_of(source, side).kind for side in sides}
        return "tensor" in kinds or ("unknown" in kinds and not kinds & {"other", "numpy"} and m.number(source, sides[-1]) is not None)
    value = m.value_of(source, expression)
    if value.kind in ("unknown", "tensor") and isinstance(expression, (cst.Name, cst.Attribute)):
        name = expression.value if isinstance(expression, cst.Name) else expression.attr.value
        if _MASK_NAME.search(name):
            return True
    if value.kind == "tensor" and value.is_integer:
        return isinstance(expression, cst.Call) and value.dtype in ("bool", "int64") and not _is_scalar(source, expression)
    return False


def _is_scalar(source: Source, call: cst.Call) -> bool:
    """`x.argmax()` without a dim is one number: indexing by a 0-d integer tensor makes a view of x."""
    found = m.operation(source, call)
    return found is None or (found.name in ("argmax", "argmin", "numel", "size", "long", "int", "randint", "max", "min") and found.plain)


def assigned_fill(source: Source, node: cst.Assign) -> tuple[cst.Name, cst.BaseExpression] | None:
    """The scores and the mask of `scores[mask] = value`, for a mask that is one for certain and scores with a name."""
    target = node.targets[0].target
    if len(node.targets) != 1 or not isinstance(target, cst.Subscript) or not isinstance(target.value, cst.Name) or len(target.slice) != 1:
        return None
    index = target.slice[0].slice
    if not isinstance(index, cst.Index) or not copies(source, index) or not m.imports_torch(source):
        return None
    return target.value, index.value


def leaves_an_entry(source: Source, mask: cst.BaseExpression, at: cst.CSTNode, depth: int = 0) -> bool:
    """Whether the mask is of a kind that never covers a whole row, or is called after one: causal, diagonal, top-k, a vocabulary filter."""
    if depth > 4:
        return False
    text = source.code(mask)
    if _NEVER_EMPTY.search(text):
        return True
    if _compares_scores(source, mask):
        return True
    for name in flow.names_in(source, mask):
        if _is_made_triangular(source, name):
            return True
        if name.value in ("self", "torch"):
            parent = source.parents.get(name)
            if isinstance(parent, cst.Attribute) and name.value == "self":
                for binding in flow.attribute_values(source, parent):
                    if binding.value is not None and binding.value is not mask and leaves_an_entry(source, binding.value, at, depth + 1):
                        return True
            continue
        for binding in flow.reaching(source, name) or ():
            if binding.value is not None and binding.value is not mask and leaves_an_entry(source, binding.value, at, depth + 1):
                return True
    return False


def _is_made_triangular(source: Source, name: cst.Name) -> bool:
    """`mask.tril_()` somewhere in the function."""
    function = source.function_of(name)
    for call in source.nodes(cst.Call):
        if isinstance(call, cst.Call) and isinstance(call.func, cst.Attribute) and call.func.attr.value in ("tril_", "triu_", "fill_diagonal_"):
            owner = call.func.value
            if isinstance(owner, cst.Name) and owner.value == name.value and source.function_of(call) is function:
                return True
    return False


def _compares_scores(source: Source, mask: cst.BaseExpression) -> bool:
    """`scores < scores.max() - c`, `logits < values[:, -1:]`: what is compared with a threshold of its own keeps its largest."""
    if not isinstance(mask, cst.Comparison) or len(mask.comparisons) != 1:
        return False
    right = mask.comparisons[0].comparator
    return not isinstance(mask.comparisons[0].operator, (cst.Equal, cst.NotEqual)) and m.number(source, right) is None


def flows_into(source: Source, made: cst.CSTNode, use: cst.BaseExpression, depth: int = 0) -> bool:
    """Whether the value of `use` is that of `made` with at most a view, a cast or an addition in between."""
    if use is made:
        return True
    if depth > 6:
        return False
    if isinstance(use, cst.Name):
        found = flow.reaching(source, use)
        if found is None or source.scope_of(made).lookup(use.value) is not source.scope_of(use).lookup(use.value):
            return False
        return any(
            b.value is not None and b.kind in ("assign", "augment") and b.index is None and flows_into(source, made, b.value, depth + 1)
            for b in found
        )
    if isinstance(use, cst.BinaryOperation):
        return flows_into(source, made, use.left, depth + 1) or flows_into(source, made, use.right, depth + 1)
    if isinstance(use, cst.Call):
        found_operation = m.operation(source, use)
        if found_operation is not None and found_operation.name in _CARRIES:
            inputs = [found_operation.input, *(arg.value for arg in found_operation.rest if found_operation.name in ("where", "add"))]
            return any(flows_into(source, made, part, depth + 1) for part in inputs)
    return False


_CARRIES = frozenset(
    "view reshape float half double to type type_as contiguous squeeze unsqueeze transpose permute masked_fill where div mul add sub dropout flatten"
    " clone".split()
)
