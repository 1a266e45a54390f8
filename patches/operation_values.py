"""What a torch operation makes of the values it is given: kind, range, dtype, origin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import libcst as cst

from patches import constants, names, operations
from patches.abstract_value import UNKNOWN, Origin, Value, join
from patches.ranges import AUTHORS_BOUND, ELEMENTWISE_RANGES, SAME_RANGE, arithmetic, monotone, power
from patches.source import Source

Evaluate = Callable[[cst.BaseExpression], Value]
"""The value of an operand."""

_MAKERS = frozenset(
    "tensor as_tensor zeros ones full arange linspace logspace eye empty zeros_like ones_like full_like empty_like rand randn randint".split()
)
_INDICES = frozenset("nonzero argwhere argsort randint randperm bincount searchsorted bucketize".split())
FLOAT_DTYPES = {"float": "float32", "half": "float16", "double": "float64", "bfloat16": "bfloat16", "long": "int64", "int": "int32", "bool": "bool"}


def dtype_name(source: Source, node: cst.BaseExpression | None) -> str | None:
    """`float16` for `torch.float16`, `torch.half` or `np.float16`; None when it is not a dtype written out."""
    full = names.qualified(source, node) if node is not None else None
    if full is None:
        return None
    module, _, name = full.rpartition(".")
    if module not in ("torch", "numpy"):
        return {"builtins.float": "float64", "builtins.int": "int64", "builtins.bool": "bool"}.get(full)
    if name in FLOAT_DTYPES and module == "torch":
        return FLOAT_DTYPES[name]
    return name if name.startswith(("float", "int", "uint", "bfloat", "bool", "complex")) else None


def value_of_operation(source: Source, operation: operations.Operation, of: Evaluate) -> Value:
    """The value of a call of a torch operation whose operands `of` evaluates."""
    name = operation.name
    if name in ("cat", "stack", "hstack", "vstack"):
        if isinstance(operation.input, (cst.List, cst.Tuple)):
            parts = [of(e.value) for e in operation.input.elements]
        else:  # a tuple of index tensors, or one that is not known
            parts = [replace(UNKNOWN, dtype=of(operation.input).dtype)]
        return replace(join(parts), kind="tensor")
    if name == "meshgrid":
        axes: list[cst.BaseExpression] = []
        for given in (operation.input, *(arg.value for arg in operation.rest if arg.keyword is None)):
            axes.extend(e.value for e in given.elements) if isinstance(given, (cst.List, cst.Tuple)) else axes.append(given)
        return replace(join([of(axis) for axis in axes]), kind="unknown")
    inner = of(operation.input)
    if name in _INDICES or (name == "where" and operation.plain):
        return Value("tensor", 0.0, dtype="int64", origin="constant" if name in ("randint", "randperm") else inner.origin, detached=True)
    if name == "where" and operation.form == "function" and len(operation.rest) == 2:
        picked = join([of(arg.value) for arg in operation.rest])  # its dtype is not the condition's
        return replace(picked, kind="tensor")
    if name in _MAKERS:
        low, high = ELEMENTWISE_RANGES.get(name, (-math.inf, math.inf))
        if name in ("tensor", "as_tensor", "full", "full_like"):
            at = operation.input if name in ("tensor", "as_tensor") else operation.argument(0, "fill_value")
            made = of(at) if at is not None else UNKNOWN
            low, high = made.low, made.high
        dtype = dtype_name(source, operation.keyword("dtype"))
        if operation.keyword("dtype") is None and _counts(source, operation, of):
            dtype = "int64"
        return Value("tensor", low, high, dtype, "noise" if name.startswith("rand") else "constant", detached=True)
    low, high = _range(source, operation, inner, of)
    dtype = inner.dtype
    detached = inner.detached or name == "detach"
    if name in FLOAT_DTYPES:
        dtype = FLOAT_DTYPES[name]
    elif name in ("to", "type", "sum", "mean", "softmax", "log_softmax", "norm", "prod", "cumsum"):
        written = operation.keyword("dtype") or (operation.argument(0) if name in ("to", "type") else None)
        dtype = dtype_name(source, written) or dtype
    elif name in ("argmax", "argmin", "long", "int", "numel", "size", "argsort", "multinomial", "randint"):
        dtype = "int64"
    elif name in ("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_not", "bool"):
        dtype = "bool"
    if name in ("item", "tolist"):
        return Value("number", low, high, dtype="float64", detached=True, origin=inner.origin)
    if name == "numpy":
        return Value("numpy", low, high, dtype=inner.dtype, detached=True)
    if name in ("size", "dim", "numel", "ndimension", "element_size"):
        return Value("integer")
    origin: Origin = "noise" if name.startswith("rand") else inner.origin
    return Value("tensor", low, high, dtype, origin, detached)


def _counts(source: Source, operation: operations.Operation, of: Evaluate) -> bool:
    """Whether a maker without a dtype makes integers: arange of nothing that looks like a float, tensor of integers written out."""
    if operation.name == "arange":
        given = (operation.input, *(arg.value for arg in operation.rest if arg.keyword is None or arg.keyword.value in ("start", "end", "step")))
        return all(_is_whole(source, node, of) for node in given)
    return operation.name in ("tensor", "as_tensor") and _holds_integers(operation.input)


def _is_whole(source: Source, node: cst.BaseExpression, of: Evaluate) -> bool:
    """Whether a number is an integer as far as can be seen: a size, a length, a literal; not a quotient, a float or a value that is one."""
    known = constants.number(source, node)
    if known is not None:
        return known == int(known) if math.isfinite(known) else False
    if isinstance(node, cst.BinaryOperation):
        return not isinstance(node.operator, cst.Divide) and _is_whole(source, node.left, of) and _is_whole(source, node.right, of)
    return not isinstance(node, cst.Float) and of(node).kind != "number"


def _holds_integers(node: cst.BaseExpression) -> bool:
    if isinstance(node, (cst.List, cst.Tuple)):
        return bool(node.elements) and all(_holds_integers(element.value) for element in node.elements)
    if isinstance(node, cst.UnaryOperation):
        return _holds_integers(node.expression)
    return isinstance(node, cst.Integer)


def _range(source: Source, operation: operations.Operation, inner: Value, of: Evaluate) -> tuple[float, float]:
    name, low, high = operation.name, inner.low, inner.high
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh", "nan_to_num"):
        return _clamp(source, operation, inner, of)
    if name in ("relu", "dropout") and name == "relu":
        return max(low, 0.0), max(high, 0.0)
    if name in ("minimum", "maximum", "fmin", "fmax") or (name in ("min", "max") and len(operation.rest) == 1 and _is_other_operand(operation, of)):
        other = of(operation.rest[0].value) if operation.rest else UNKNOWN
        pick = min if name in ("minimum", "fmin", "min") else max
        return pick(low, other.low), pick(high, other.high)
    if name == "where" and len(operation.rest) == 2:
        picked = [of(arg.value) for arg in operation.rest]
        return min(v.low for v in picked), max(v.high for v in picked)
    if name == "masked_fill":
        filled = of(v) if (v := operation.argument(1, "value")) is not None else UNKNOWN
        return min(low, filled.low), max(high, filled.high)
    if name in ("exp", "exp2", "expm1", "sqrt", "log", "log1p", "rsqrt") or (name == "softplus" and operation.plain):
        return monotone(name, low, high)
    if name in ELEMENTWISE_RANGES:
        fixed_low, fixed_high = ELEMENTWISE_RANGES[name]
        if name in ("square", "norm", "std", "var") and inner.is_bounded and name == "square":
            return 0.0, max(low * low, high * high)
        return fixed_low, fixed_high
    if name == "abs":
        return 0.0, max(abs(low), abs(high))
    if name == "neg":
        return -high, -low
    if name == "pow" and (exponent := constants.number(source, operation.argument(0, "exponent"))) is not None:
        return power(low, high, exponent)
    if name in ("mul", "div", "add", "sub") and operation.rest:
        right = of(operation.rest[0].value)
        return arithmetic({"mul": "*", "div": "/", "add": "+", "sub": "-"}[name], inner, right)
    if name == "sum" or name == "cumsum":
        return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)
    return (low, high) if name in SAME_RANGE else (-math.inf, math.inf)


def _is_other_operand(operation: operations.Operation, of: Evaluate) -> bool:
    other = operation.rest[0]
    return other.keyword is None and of(other.value).kind == "tensor"


def _clamp(source: Source, operation: operations.Operation, inner: Value, of: Evaluate) -> tuple[float, float]:
    if operation.name == "hardtanh":
        lower, upper = operation.argument(0, "min_val"), operation.argument(1, "max_val")
        low = constants.number(source, lower) if lower is not None else -1.0
        high = constants.number(source, upper) if upper is not None else 1.0
    elif operation.name == "nan_to_num":
        return inner.low, inner.high
    else:
        lower = operation.argument(0, "min") if operation.name != "clamp_max" else None
        upper = operation.argument(1, "max") if operation.name == "clamp" else operation.argument(0, "max") if operation.name == "clamp_max" else None
        low, high = _end(source, lower, -1, of), _end(source, upper, 1, of)
    out_low = inner.low if low is None else max(inner.low, low)
    out_high = inner.high if high is None else min(inner.high, high)
    return out_low, out_high


def _end(source: Source, node: cst.BaseExpression | None, side: int, of: Evaluate) -> float | None:
    """The end of a clamp; one that is given but not a constant counts as some modest bound that its author chose."""
    if node is None or (isinstance(node, cst.Name) and node.value == "None"):
        return None
    known = constants.number(source, node)
    if known is not None:
        return known
    value = of(node)
    end = value.high if side > 0 else value.low
    return end if math.isfinite(end) else side * AUTHORS_BOUND
