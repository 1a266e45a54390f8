"""Numbers that can be read off the source: literals, their arithmetic, and names bound once to one."""

from __future__ import annotations

import math

import libcst as cst

from patches import names
from patches.source import Source

_FUNCTIONS = {
    "log": math.log, "exp": math.exp, "sqrt": math.sqrt, "log2": math.log2, "log10": math.log10, "log1p": math.log1p, "expm1": math.expm1,
}  # fmt: skip
_VALUES = {"inf": math.inf, "Inf": math.inf, "infty": math.inf, "pi": math.pi, "e": math.e, "nan": math.nan, "NINF": -math.inf}
_MODULES = ("math", "numpy", "torch")
_DEPTH = 8


def number(source: Source, node: cst.CSTNode | None, depth: int = 0, *, defaults: bool = True) -> float | None:
    """The value of a constant expression, None if it is not certain to be one.

    Follows `EPS = 1e-8` at module or class level, a local bound once, `self.eps` set once from a
    constant, and (with `defaults`) a parameter's default: what the function does unless told otherwise.
    """
    if node is None or depth > _DEPTH:
        return None
    if isinstance(node, (cst.Integer, cst.Float)):
        try:
            return float(node.evaluated_value)
        except (OverflowError, ValueError):  # an integer beyond every float
            return None
    memo: dict[tuple[cst.CSTNode, bool], float | None] = source.memo.setdefault("numbers", {})
    key = (node, defaults)
    if key not in memo:
        memo[key] = None  # what is made of itself (`self.s = self.s.clamp(max=c)`) is no constant
        memo[key] = _number(source, node, depth, defaults)
    return memo[key]


def _number(source: Source, node: cst.CSTNode, depth: int, defaults: bool) -> float | None:
    if isinstance(node, cst.UnaryOperation):
        inner = number(source, node.expression, depth + 1, defaults=defaults)
        if inner is None:
            return None
        if isinstance(node.operator, cst.Minus):
            return -inner
        return inner if isinstance(node.operator, cst.Plus) else None
    if isinstance(node, cst.BinaryOperation):
        return _binary(source, node, depth, defaults)
    if isinstance(node, cst.Call):
        return _call(source, node, depth, defaults)
    if isinstance(node, (cst.Name, cst.Attribute)):
        full = names.qualified(source, node)
        if full is not None:
            module, _, name = full.rpartition(".")
            return _VALUES.get(name) if module in _MODULES else None
        return _named(source, node, depth, defaults)
    return None


def _binary(source: Source, node: cst.BinaryOperation, depth: int, defaults: bool) -> float | None:
    left = number(source, node.left, depth + 1, defaults=defaults)
    right = number(source, node.right, depth + 1, defaults=defaults) if left is not None else None
    if left is None or right is None:
        return None
    try:
        match node.operator:
            case cst.Add():
                return left + right
            case cst.Subtract():
                return left - right
            case cst.Multiply():
                return left * right
            case cst.Divide():
                return left / right
            case cst.FloorDivide():
                return left // right
            case cst.Power():
                result = left**right
                return result if isinstance(result, float) else None
    except (ArithmeticError, ValueError):
        return None
    return None


def _call(source: Source, node: cst.Call, depth: int, defaults: bool) -> float | None:
    full = names.qualified(source, node.func)
    if full is None or len(node.args) != 1 or node.args[0].star or node.args[0].keyword is not None:
        return None
    module, _, name = full.rpartition(".")
    argument = node.args[0].value
    if full == "builtins.float" and isinstance(argument, (cst.SimpleString, cst.ConcatenatedString)):
        text = argument.evaluated_value
        try:
            return float(text) if isinstance(text, str) else None
        except ValueError:
            return None
    inner = number(source, argument, depth + 1, defaults=defaults)
    if inner is None:
        return None
    if full in ("builtins.float", "builtins.int", "torch.tensor", "torch.as_tensor", "numpy.float32", "numpy.float64"):
        return float(int(inner)) if full == "builtins.int" and math.isfinite(inner) else inner
    if module in _MODULES and name in _FUNCTIONS:
        try:
            return _FUNCTIONS[name](inner)
        except (ArithmeticError, ValueError):
            return None
    return None


def _named(source: Source, node: cst.Name | cst.Attribute, depth: int, defaults: bool) -> float | None:
    if isinstance(node, cst.Name):
        scope = source.scope_of(node).lookup(node.value)
        bindings = scope.bindings[node.value] if scope is not None else []
        if len(bindings) != 1:
            return None
        only = bindings[0]
        if only.kind == "assign" and only.index is None:
            return number(source, only.value, depth + 1, defaults=defaults)
        if only.kind == "parameter" and defaults and isinstance(only.node, cst.Param):
            return number(source, only.node.default, depth + 1, defaults=defaults)
        return None
    if isinstance(node.value, cst.Name) and node.value.value in ("self", "cls"):
        from patches.flow import attribute_values  # the flow module reads constants too

        values = attribute_values(source, node)
        if len(values) == 1:
            return number(source, values[0].value, depth + 1, defaults=defaults)
    return None
