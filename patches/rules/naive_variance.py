"""NS701 naive-variance."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import flow
from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class NaiveVariance(AbstractRule):
    """A variance computed as the mean of squares less the square of the mean.

    What it finds: `(x**2).mean(d) - x.mean(d)**2` of a tensor, in any spelling and through local names.

    Why it is bad: both terms are about mean^2; their difference loses as many digits as mean^2 is larger than the variance. In float32 a
    mean 4000 times the deviation leaves none, the result may be negative, and the square root behind it NaN.

    Example:
        variance = (x**2).mean(0) - x.mean(0) ** 2

    Use instead:
        variance = x.var(dim=0, unbiased=False)

    Fix safety: unsafe. The same quantity, but where the old form had lost digits it is another number, and never a negative one.

    References: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", The American Statistician 37.
    """

    code = "NS701"
    words = ("mean",)
    requires = (r"\*\* *2|\bpow\b|\bsquare\b|\b(\w+) *\* *\1\b",)
    nodes = (cst.BinaryOperation,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.BinaryOperation)
        sides = m.binary(node, "-")
        if sides is None:
            return
        of_squares = _mean(source, m.definition(source, sides[0]))
        if of_squares is None:
            return
        x = m.power_of(source, m.definition(source, of_squares.input), 2)
        root = m.power_of(source, m.definition(source, sides[1]), 2)
        mean = _mean(source, m.definition(source, root)) if root is not None else None
        if x is None or mean is None or not _alike(source, x, mean.input) or m.is_other(source, x) or m.value_of(source, x).dtype == "float64":
            return
        readers = flow.readers(source, node)  # the root of a negative variance fails, not the difference
        arguments = _arguments(source, of_squares)
        if arguments is None or arguments != _arguments(source, mean):
            yield self.hit(node, also=readers)
            return
        if not m.is_pure(source, x) or not flow.is_stable(source, x, node):
            yield self.hit(node, also=readers)
            return
        extra = ", ".join((*arguments[:1], "unbiased=False", *arguments[1:])) if arguments and arguments[0].startswith("dim") else "unbiased=False"
        if of_squares.form == "method":
            yield self.hit(node, *replace_with(node, f"{m.operand(source, x)}.var({extra})"), also=readers)
        else:
            spelling = m.spell(source, node, "torch.var")
            yield self.hit(node, *replace_with(node, f"{spelling.text}({m.argument(source, x)}, {extra})", spelling.needs_import), also=readers)


def _mean(source: Source, node: cst.BaseExpression) -> m.Operation | None:
    found = m.operation(source, node, "mean", result_is_tensor=True)
    return None if found is None or found.inplace or found.form == "module" else found


def _alike(source: Source, left: cst.BaseExpression, right: cst.BaseExpression) -> bool:
    return m.same(source, left, right)


def _arguments(source: Source, mean: m.Operation) -> list[str] | None:
    """`dim=...` and `keepdim=...` as they are to be written for var; None where var has no equal."""
    if mean.keyword("dtype", "out") is not None:
        return None
    positional = [arg for arg in mean.rest if arg.keyword is None]
    if len(positional) > 2 or (
        len(positional) == 2 and not (isinstance(positional[1].value, cst.Name) and positional[1].value.value in ("True", "False"))
    ):
        return None  # x.mean(1, 2) is the mean over both axes
    dim, keepdim = mean.argument(0, "dim", "axis"), mean.argument(1, "keepdim", "keepdims")
    written = [f"dim={source.code(dim)}"] if dim is not None else []
    return written + ([f"keepdim={source.code(keepdim)}"] if keepdim is not None else [])
