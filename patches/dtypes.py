"""Which dtype an expression will have, as text to write, and whether it is certain to be a floating one.

`torch.finfo` raises for integers, so a rule writes it only where the value cannot be one.
"""

from __future__ import annotations

import re

import libcst as cst

from patches import flow, names, operations, values
from patches.constants import number
from patches.edits import AddLines, Edit, Unfixable
from patches.settings import HALF, Settings
from patches.source import Source

# float16 itself, and what brings it in: bfloat16 has float32's range and does not count.
_FLOAT16_MARKS = re.compile(r"(?<!b)float16|\bhalf\b|HalfTensor|\bfp16|autocast|GradScaler")
_FLOAT16_NAMES = ("float16", "half", "HalfTensor", "fp16", "autocast", "GradScaler")
_FLOAT16_STRINGS = ("float16", "fp16", "half", "16-mixed")

_FLOAT_RESULT = frozenset(
    "exp exp2 expm1 log log1p log2 log10 sqrt rsqrt sigmoid tanh softmax log_softmax softplus logsigmoid norm linalg.norm linalg.vector_norm mean"
    " var std normalize cosine_similarity rand randn rand_like randn_like logsumexp erf sin cos reciprocal dropout layer_norm linear cdist"
    " mse_loss cross_entropy float half double bfloat16 gelu silu elu".split()
)
_KEEPS_DTYPE = frozenset(
    "sum mean amax amin abs sqrt exp log square neg clamp relu softmax log_softmax sigmoid tanh softplus view reshape squeeze unsqueeze expand"
    " expand_as flatten contiguous transpose permute detach clone norm linalg.norm linalg.vector_norm var std cumsum rsqrt log1p expm1 logsumexp"
    " masked_fill gather index_select sin cos prod logsigmoid".split()
)


def is_float16_meant(text: str, settings: Settings) -> bool:
    """Whether the code may meet float16: `--dtype float16`, or the file speaks of it or of autocast."""
    if settings.dtype is not None:
        return settings.dtype in HALF
    return _FLOAT16_MARKS.search(text) is not None


def is_float16_in_sight(source: Source) -> bool:
    """The same for a parsed file, worked out once: a comment, or a dtype that the code compares with, is not enough."""
    if "float16_in_sight" not in source.memo:
        meant = is_float16_meant(source.text, source.settings)
        source.memo["float16_in_sight"] = meant and (source.settings.dtype is not None or _uses_float16(source))
    return bool(source.memo["float16_in_sight"])


def _uses_float16(source: Source) -> bool:
    """Whether the code itself brings float16 in. What compares a dtype with it knows what to do about it."""
    for node in source.nodes(cst.Attribute, cst.Name, cst.SimpleString):
        if isinstance(node, cst.SimpleString):
            named = node.raw_value in _FLOAT16_STRINGS
        else:
            word = node.attr.value if isinstance(node, cst.Attribute) else getattr(node, "value", "")
            named = word in _FLOAT16_NAMES and (word != "half" or _is_half(source, node))
        if named and source.enclosing(node, cst.Comparison, cst.Import, cst.ImportFrom) is None and not _is_switched_off(source, node):
            return True
    return False


def _is_half(source: Source, node: cst.CSTNode) -> bool:
    """`model.half()` or torch.half, and not an attribute that holds half of something."""
    parent = source.parents.get(node)
    called = isinstance(node, cst.Attribute) and isinstance(parent, cst.Call) and parent.func is node and not parent.args
    return called or (not isinstance(parent, cst.Attribute) and names.qualified(source, node) == "torch.half")


def _is_switched_off(source: Source, node: cst.CSTNode) -> bool:
    """`autocast(enabled=False)` keeps half precision out."""
    call = source.enclosing(node, cst.Call)
    if not isinstance(call, cst.Call) or not source.is_inside(node, call.func):
        return False
    return any(
        a.keyword is not None and a.keyword.value == "enabled" and isinstance(a.value, cst.Name) and a.value.value == "False" for a in call.args
    )


def is_floating(source: Source, node: cst.BaseExpression, depth: int = 0) -> bool:
    """Whether the value is certain to be a floating tensor."""
    value = values.value_of(source, node)
    if value.dtype is not None:
        return value.dtype.startswith(("float", "bfloat"))
    if value.is_integer or value.kind in ("number", "numpy", "other", "module") or depth > 8:
        return False
    if value.kind == "tensor" and value.origin in ("network", "parameter"):
        return True
    if isinstance(node, cst.Name):
        found = flow.reaching(source, node)
        assigned = [b.value for b in found or () if b.kind == "assign" and b.index is None and b.value is not None]
        return bool(assigned) and found is not None and len(assigned) == len(found) and all(is_floating(source, v, depth + 1) for v in assigned)
    if isinstance(node, cst.Subscript):
        return is_floating(source, node.value, depth + 1)
    if isinstance(node, cst.Call):
        found_operation = operations.parse(source, node)
        if found_operation is None:
            return False
        if found_operation.name in _FLOAT_RESULT:
            return True
        return found_operation.name in _KEEPS_DTYPE and is_floating(source, found_operation.input, depth + 1)
    if isinstance(node, cst.UnaryOperation):
        return is_floating(source, node.expression, depth + 1)
    if isinstance(node, cst.BinaryOperation):
        if isinstance(node.operator, cst.Divide):
            return "tensor" in (values.value_of(source, node.left).kind, values.value_of(source, node.right).kind)
        sides = (node.left, node.right)
        return any(is_floating(source, side, depth + 1) or _is_float_literal(side) for side in sides) and value.kind == "tensor"
    return False


def _is_float_literal(node: cst.BaseExpression) -> bool:
    return isinstance(node, cst.Float)


def carrier(source: Source, node: cst.BaseExpression) -> str | None:
    """Text of a short expression with the dtype of `node` (`x` for `x.pow(2).sum(-1)`); None if there is none that is certain."""
    for _ in range(8):
        if isinstance(node, (cst.Name, cst.Attribute)) and not isinstance(node, cst.Call):
            return source.code(node)
        if isinstance(node, cst.Subscript) and isinstance(node.value, (cst.Name, cst.Attribute)):
            return source.code(node.value) if values.is_tensor(source, node.value) else None
        if isinstance(node, cst.UnaryOperation):
            node = node.expression
        elif isinstance(node, cst.BinaryOperation):
            left, right = number(source, node.left), number(source, node.right)
            if (left is None) == (right is None):
                if source.code(node.left) != source.code(node.right):
                    return None
                node = node.left
            else:
                node = node.left if left is None else node.right
        elif isinstance(node, cst.Call):
            found = operations.parse(source, node)
            if found is None or found.keyword("dtype", "out") is not None:
                return None
            if found.name == "pow" and number(source, found.argument(0, "exponent")) is None:
                return None
            if found.name not in _KEEPS_DTYPE and found.name != "pow":
                return None
            if found.name == "clamp" and any(number(source, arg.value) is None for arg in found.rest):
                return None
            node = found.input
        else:
            return None
    return None


def named(source: Source, node: cst.BaseExpression, suggestion: str) -> tuple[str, tuple[Edit, ...]]:
    """A name for a value that is to be written twice: its own if it has one, else a new local name and the line that makes it.

    Raises:
        Unfixable: the expression stands where no line can be put before it without changing what runs when.
    """
    if isinstance(node, cst.Name) or (isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name)):
        return source.code(node), ()
    statement = source.statement_of(node)
    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1:
        raise Unfixable("the value has no name and no line of its own")
    if not isinstance(statement.body[0], (cst.Assign, cst.Return)) or _is_conditional(source, node, statement):
        raise Unfixable("the value may not be computed ahead of its statement")
    name = names.invented(source, node, suggestion)
    text = source.code(node)
    if node.lpar and "\n" not in text:
        text = source.code(node.with_changes(lpar=node.lpar[1:], rpar=node.rpar[:-1]))
    elif "\n" in text and not node.lpar:
        text = f"({text})"
    return name, (AddLines(statement, (f"{name} = {text.strip()}",), "before"),)


def _is_conditional(source: Source, node: cst.CSTNode, statement: cst.CSTNode) -> bool:
    """Whether something decides inside the statement if the expression is computed, or how often."""
    for ancestor in source.ancestors(node):
        if ancestor is statement:
            return False
        if isinstance(ancestor, (cst.Lambda, cst.IfExp, cst.BooleanOperation, cst.ListComp, cst.GeneratorExp, cst.SetComp, cst.DictComp)):
            return True
    return True
