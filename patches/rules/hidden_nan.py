"""NS802 hidden-nan."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_LOSS = re.compile(r"loss|\bnll\b|elbo|objective|\bcost\b", re.IGNORECASE)
_GRADIENT = re.compile(r"\bgrad\b|\.grad\b|gradient", re.IGNORECASE)
_TESTS = ("isnan", "isinf", "isfinite")


class HiddenNan(AbstractRule):
    """A NaN that is papered over.

    What it finds: `nan_to_num` on a loss or a gradient; `if torch.isnan(loss): continue` (or pass, return, or a constant put in its place), in any
    spelling, when the branch neither raises nor exits.

    Why it is bad: the operation that makes the NaN stays. nan_to_num's gradient is 0 there but the NaN behind it is not: 0 * NaN is NaN in
    every parameter. Skipping the batch trains on those examples never, silently, and once a parameter is NaN every batch is skipped.

    Example:
        loss = torch.nan_to_num(loss)

    Use instead:
        # find the operation: python -m instrument run --report out train.py names its line

    Fix safety: display. The cure is elsewhere.

    References: PyTorch issue 7673 (NaN gradients through masks); audit, remedy 14 (a constant loss trains nothing, silently).
    """

    code = "NS802"
    words = ("nan_to_num", "nan_to_num_", "isnan", "isinf", "isfinite")
    nodes = (cst.Call, cst.If)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.Call):
            found = m.operation(source, node, "nan_to_num")
            if found is not None and (
                _is_made_a_loss(source, node) or _LOSS.search(_subject(source, found.input)) or _GRADIENT.search(_subject(source, found.input))
            ):
                yield self.hit(node)
            return
        assert isinstance(node, cst.If)
        if _tests_loss(source, node.test) and _skips(source, node.body):
            yield self.hit(node.test)


def _is_made_a_loss(source: Source, node: cst.Call) -> bool:
    statement = source.parents.get(node)
    return isinstance(statement, cst.Assign) and _LOSS.search(source.code(statement.targets[0].target)) is not None


def _subject(source: Source, node: cst.BaseExpression) -> str:
    """The names an expression is about: itself if it is a name, else what it is assigned from."""
    return source.code(node) if isinstance(node, (cst.Name, cst.Attribute, cst.Subscript)) else ""


def _tests_loss(source: Source, test: cst.BaseExpression) -> bool:
    """`isnan(loss)`, `not isfinite(loss)`, `loss.isnan().any()`, `isnan(loss) or isinf(loss)`, `loss != loss`."""
    if isinstance(test, cst.BooleanOperation):
        return _tests_loss(source, test.left) or _tests_loss(source, test.right)
    negated = isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not)
    inner: cst.BaseExpression = test.expression if isinstance(test, cst.UnaryOperation) else test
    while isinstance(inner, cst.Call) and isinstance(inner.func, cst.Attribute) and inner.func.attr.value in ("any", "all", "item", "sum"):
        inner = inner.func.value
    if isinstance(inner, cst.Call) and inner.args and isinstance(inner.func, cst.Attribute) and inner.func.attr.value in ("any", "all"):
        inner = inner.args[0].value
    if not isinstance(inner, cst.Call):
        return False
    full = m.qualified(source, inner.func) or ""
    name = full.rpartition(".")[2] if full else inner.func.attr.value if isinstance(inner.func, cst.Attribute) else ""
    if name not in _TESTS or (name == "isfinite") is not negated:
        return False
    subject = inner.args[0].value if inner.args else inner.func.value if isinstance(inner.func, cst.Attribute) else None
    while (
        isinstance(subject, cst.Call)
        and isinstance(subject.func, cst.Attribute)
        and subject.func.attr.value in ("item", "detach", "data", "sum", "mean")
    ):
        subject = subject.func.value
    return subject is not None and _LOSS.search(_subject(source, subject)) is not None


def _skips(source: Source, body: cst.BaseSuite) -> bool:
    """Whether the branch goes on as if nothing were: it ends in continue, or puts a constant in the loss's place, and raises nothing."""
    text = source.module.code_for_node(body)
    if re.search(r"\braise\b|\bexit\(|\bassert\b|\bbreakpoint\(|should_stop|set_trace|\bbreak\b", text):
        return False
    statements = body.body
    small = [s for line in statements for s in (line.body if isinstance(line, cst.SimpleStatementLine) else [line])]
    if any(isinstance(s, (cst.Continue, cst.Pass)) for s in small):
        return True
    for s in small:
        if isinstance(s, cst.Assign) and _LOSS.search(source.code(s.targets[0].target)) and _is_constant(source, s.value):
            return True
    return False


def _is_constant(source: Source, value: cst.BaseExpression) -> bool:
    if m.number(source, value) is not None:
        return True
    found = m.operation(source, value, "zeros_like", "zeros", "tensor", "full_like", "nan_to_num")
    return found is not None
