"""NS201 exp-logvar."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst

from patches import bounding, flow, operations
from patches import matching as m
from patches.edits import AddImport, Edit, Unfixable
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

LOG_SCALE_NAME = re.compile(
    r"(?i)(?:^|_)(?:log|ln)_?(?:var(?:iance)?s?|std(?:s|ev|dev)?|sigmas?|sig|scales?|sd|s)(?:$|_?(?:sq|squared|2)|_|\d)|(?:^|_)lv(?:$|_|\d)"
)
"""Names of a log-variance, log-std or log-scale: logvar, fc_log_var, log_std, prior_logsigma, self.log_s, lv."""

_SCALE_NAME = re.compile(r"(?i)(?:^|_)(?:var(?:iance)?|std(?:s|ev|dev)?|sigma)s?(?:$|_|\d)")
"""Names of a scale itself: `sigma = exp(self.fc(h))` and `exp(self.var_decoder(h))` make the layer's output its logarithm."""
_BOUNDED_NAME = re.compile(r"(?i)clip|clamp|bound|_min$|_max$|fixed")
_LOGARITHMS = ("log", "log2", "log10", "log1p", "logsumexp", "log_softmax", "logsigmoid", "log_prob", "lgamma", "xlogy")
_PASSED = frozenset(
    "view reshape squeeze unsqueeze expand expand_as repeat permute transpose flatten contiguous float clone to view_as type_as t".split()
)

LOW, HIGH = -30, 20
"""The bound: variances from 9.4e-14 to 4.9e8, and exp(-low) = 1e13 is finite in float32 and bfloat16."""
HALF_LOW, HALF_HIGH = -10, 10
"""In float16, where exp overflows at 11.09."""


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """coefficient * node."""

    coefficient: float
    node: cst.BaseExpression


class ExpLogvar(AbstractRule):
    """The exponential of a raw log-variance, log-std or log-scale.

    What it finds: `exp(logvar)`, `exp(0.5 * logvar)`, `(log_std - 1).exp()`, `exp(logvar - prior_logvar)` of values
    with such a name that nothing bounds, in the function, through helpers of the file, or by its callers there; and
    the exponential of a layer's raw output that is called a scale: `sigma = exp(self.fc(h))`, `exp(self.var_head(h))`.

    Why it is bad: nothing keeps a log-variance from growing; at 88.7 (float32; 11.09 in float16) its exponential is
    inf, the loss inf or NaN, and the run is lost. At a high learning rate this takes a few dozen steps.

    Example:
        mu, logvar = self.encode(x)
        std = torch.exp(0.5 * logvar)

    Use instead:
        mu, logvar = self.encode(x)
        logvar = -30 + F.softplus(50 - F.softplus(20 - logvar))
        std = torch.exp(0.5 * logvar)

    `--bound clamp` writes `logvar = logvar.clamp(-30, 20)`, whose gradient is 0 outside; float16 gets (-10, 10).

    The bound goes where the log-variance is made, so that every reader sees the same one: a clamp only inside the
    KL's exponential leaves a constant gradient of -0.5 on the log-variance outside it, a runaway. The form is
    `hi - softplus(hi - x)`, then the same from below, in one expression.

    Fix safety: unsafe. Values within a few units of the bounds change, and those beyond are bounded.

    References: audit findings E2, X1 to X4; Kingma and Welling 2014 (arXiv:1312.6114), appendix B for the terms.
    """

    code = "NS201"
    words = ("exp", "exp_")
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        exp = m.operation(source, node, "exp")
        if exp is None or not exp.plain or m.no_grad_at(source, node):
            return
        terms = _linear(source, exp.input, 1.0, 0)
        if not terms:
            return
        raw = [term for term in terms if is_log_scale(source, term.node) or _is_made_a_scale(source, exp.node, term.node)]
        others = [term for term in terms if term not in raw and not m.value_of(source, term.node).is_bounded]
        if not raw or others:
            return
        value = m.value_of(source, exp.input)
        limit = m.exp_limit(source, value)
        if value.high <= limit or value.is_integer or value.detached or value.dtype == "float64" or m.is_double_default(source):
            return
        if value.kind in ("numpy", "number", "other") or value.origin in ("constant", "noise"):
            return
        unbounded = [term for term in raw if not _is_bounded(source, term.node, limit, term.coefficient)]
        if not unbounded:
            return
        low, high = self._range(source, value)
        try:
            edits: tuple[Edit, ...] = tuple(edit for term in unbounded for edit in self._fix(source, term.node, exp.node, low, high, limit))
        except Unfixable:
            edits = ()
        if sum(max(t.coefficient * low, t.coefficient * high) for t in raw) > limit:
            edits = ()  # such a coefficient needs a tighter bound, which is its author's to choose
        yield self.hit(node, *edits)

    @staticmethod
    def _range(source: Source, value: m.Value) -> tuple[int, int]:
        half = value.dtype == "float16" or source.settings.dtype == "float16"
        return (HALF_LOW, HALF_HIGH) if half else (LOW, HIGH)

    @staticmethod
    def _fix(source: Source, node: cst.BaseExpression, at: cst.Call, low: int, high: int, limit: float) -> tuple[Edit, ...]:
        spelling = m.spell(source, at, "torch.nn.functional.softplus")

        def bound(text: str) -> str:
            if source.settings.bound == "clamp":
                plain = re.fullmatch(r"[\w.]+", text) or isinstance(cst.parse_expression(text), (cst.Call, cst.Subscript))
                return f"{text if plain else f'({text})'}.clamp({low}, {high})"
            inner = cst.parse_expression(text)
            loose = isinstance(inner, (cst.IfExp, cst.Lambda, cst.Comparison, cst.BooleanOperation, cst.BinaryOperation))
            text = f"({text})" if loose else text
            return f"{low} + {spelling.text}({high - low} - {spelling.text}({high} - {text}))"

        edits = bounding.bound_where_made(source, node, bound, lambda e: m.value_of(source, e).high <= limit)
        if source.settings.bound == "clamp" or spelling.needs_import is None:
            return edits
        return (*edits, AddImport(spelling.needs_import))


def _identifier(node: cst.BaseExpression) -> str:
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        return node.attr.value
    if isinstance(node, cst.Call):
        return _identifier(node.func)
    return _identifier(node.value) if isinstance(node, cst.Subscript) else ""


def is_log_scale(source: Source, node: cst.BaseExpression) -> bool:
    """Whether an expression is called like a log-variance and is not itself a logarithm, a constant or a buffer."""
    name = _identifier(node)
    if LOG_SCALE_NAME.search(name) is None or _BOUNDED_NAME.search(name) is not None:
        return False
    if isinstance(node, cst.Call) and not isinstance(node.func, (cst.Name, cst.Attribute)):
        return False
    return not _is_logarithm(source, node, 0)


def _is_made_a_scale(source: Source, exp: cst.Call, node: cst.BaseExpression) -> bool:
    """Whether `node` is a network's raw output whose exponential is called a scale: by the layer that made it, or by what it is assigned to."""
    if m.value_of(source, node).origin != "network":
        return False
    made = m.definition(source, node)
    if isinstance(made, cst.Call) and _SCALE_NAME.search(_identifier(made)) is not None:
        return True
    place = source.parents.get(exp)
    while isinstance(place, cst.BinaryOperation) and any(m.number(source, side) is not None for side in (place.left, place.right)):
        place = source.parents.get(place)
    if not isinstance(place, cst.Assign) or len(place.targets) != 1:
        return False
    target = place.targets[0].target
    return isinstance(target, (cst.Name, cst.Attribute)) and _SCALE_NAME.search(_identifier(target)) is not None


def _is_logarithm(source: Source, node: cst.BaseExpression, depth: int) -> bool:
    """Whether every value that reaches `node` was made by a logarithm: exp undoes it, and nothing raw grows there."""
    if depth > 4:
        return False
    if isinstance(node, cst.Name):
        bindings = flow.reaching(source, node) or ()
        made = [b.value for b in bindings if b.kind == "assign" and b.index is None and b.value is not None]
        return bool(made) and len(made) == len(bindings) and all(_is_logarithm(source, v, depth + 1) for v in made)
    if isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name) and node.value.value == "self":
        made = [b.value for b in flow.attribute_values(source, node) if b.value is not None]
        return bool(made) and all(_is_logarithm(source, v, depth + 1) for v in made)
    if isinstance(node, cst.UnaryOperation):
        return _is_logarithm(source, node.expression, depth + 1)
    if isinstance(node, cst.BinaryOperation):
        sides = [side for side in (node.left, node.right) if m.number(source, side) is None]
        return bool(sides) and all(_is_logarithm(source, side, depth + 1) for side in sides)
    if isinstance(node, cst.Call):
        found = operations.parse(source, node)
        if found is None:
            return False
        return found.name in _LOGARITHMS or (found.name in _PASSED and _is_logarithm(source, found.input, depth + 1))
    return False


def _linear(source: Source, node: cst.BaseExpression, factor: float, depth: int) -> list[_Term]:
    """The expression as a sum of coefficient * node, constants left out; one term of itself when it is nothing simpler."""
    if m.number(source, node) is not None:
        return []
    if depth < 6:
        inner = m.negated(source, node)
        if inner is not None:
            return _linear(source, inner, -factor, depth + 1)
        if isinstance(node, cst.BinaryOperation):
            product = _scaled(source, node)
            if product is not None:
                return _linear(source, product.node, factor * product.coefficient, depth + 1)
            if isinstance(node.operator, (cst.Add, cst.Subtract)):
                sign = -1.0 if isinstance(node.operator, cst.Subtract) else 1.0
                return [*_linear(source, node.left, factor, depth + 1), *_linear(source, node.right, sign * factor, depth + 1)]
        if isinstance(node, cst.Call):
            found = operations.parse(source, node)
            if found is not None and found.form != "module" and (found.form == "function" or not m.is_other(source, found.input)):
                if found.name in ("mul", "div") and len(found.rest) == 1 and (scale := m.number(source, found.rest[0].value)):
                    return _linear(source, found.input, factor * (scale if found.name == "mul" else 1 / scale), depth + 1)
                if found.name in _PASSED:
                    return _linear(source, found.input, factor, depth + 1)
        if isinstance(node, cst.Name) and LOG_SCALE_NAME.search(node.value) is None:
            made = m.definition(source, node)
            if made is not node:
                return _linear(source, made, factor, depth + 1)
    return [_Term(factor, node)]


def _scaled(source: Source, node: cst.BinaryOperation) -> _Term | None:
    """coefficient * rest for a product with, or a quotient by, a constant or a tensor of ones and the like."""
    if isinstance(node.operator, cst.Multiply):
        for scale, rest in ((node.left, node.right), (node.right, node.left)):
            number = m.number(source, scale)
            if number is not None:
                return _Term(number, rest)
            value = m.value_of(source, scale)
            if value.is_bounded and value.kind == "tensor" and LOG_SCALE_NAME.search(_identifier(scale)) is None:
                return _Term(max(abs(value.low), abs(value.high)), rest)
    if isinstance(node.operator, cst.Divide):
        number = m.number(source, node.right)
        if number:
            return _Term(1 / number, node.left)
    return None


def _is_bounded(source: Source, node: cst.BaseExpression, limit: float, coefficient: float) -> bool:
    """Whether the value is bounded, on the side that exp minds, where it is made: in sight, or by every caller of this function in the file."""
    value = m.value_of(source, node)
    if coefficient * (value.high if coefficient > 0 else value.low) <= limit:
        return True
    if isinstance(node, cst.Name):
        bindings = flow.reaching(source, node) or ()
        if bindings and all(b.kind == "parameter" for b in bindings):
            function = source.function_of(bindings[0].node)
            passed = bounding.arguments_for(source, function, node.value) if function is not None else None
            return passed is not None and all(_is_bounded(source, e, limit, coefficient) for e in passed if e is not node)
    return False
