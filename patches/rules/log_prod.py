"""NS112 log-prod."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class LogProd(AbstractRule):
    """The logarithm of a product over a dimension.

    What it finds: `log(x.prod(dim))` in any spelling.

    Why it is bad: a product of 100 probabilities of 0.1 is 0 in float32 (38 in float16's range of 5), its logarithm
    -inf; and the gradient of a product that holds a zero divides by it.

    Example:
        log_likelihood = torch.log(p.prod(dim=1))

    Use instead:
        log_likelihood = torch.log(p).sum(dim=1)

    Fix safety: unsafe. A product of two negative factors has a logarithm, the factors have none.

    References: any text on likelihoods; torch.cumsum of logs for running products.
    """

    code = "NS112"
    words = ("prod",)
    requires = (r"\blog\b",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        log = m.operation(source, node, "log")
        if log is None or not log.plain or log.inplace:
            return
        prod = m.operation(source, m.definition(source, log.input), "prod", result_is_tensor=True)
        if prod is None or prod.keyword("out") is not None:
            return
        value = m.value_of(source, prod.input)
        if value.is_integer or value.dtype == "float64" or value.kind in ("numpy", "other", "integer") or value.low >= 1:
            return
        if not source.is_inside(prod.node, node) and not m.is_pure(source, prod.input):
            yield self.hit(node)
            return
        rest = ", ".join(source.code(a.with_changes(comma=cst.MaybeSentinel.DEFAULT)).strip() for a in prod.rest)
        if log.form == "method":
            text, needs = f"{m.operand(source, prod.input)}.log().sum({rest})", None
        else:
            text, needs = m.function_text(source, node, "torch.log", m.argument(source, prod.input))
            text = f"{text}.sum({rest})"
        yield self.hit(node, *replace_with(node, text, needs))
