"""NS110 sumsq-sqrt."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source


class SumsqSqrt(AbstractRule):
    """The square root of a sum or a mean of squares, or of a variance.

    What it finds: `(x**2).sum(d).sqrt()`, `(x * x).mean().sqrt()`, `x.var(d).sqrt()` in any spelling, where gradients flow and
    nothing is added under the root.

    Why it is bad: the root's derivative at 0 is infinite and the square's is 0: the gradient of a zero
    vector (two equal points, a constant row) is NaN. In float16 the squares overflow from 256 on.

    Example:
        distance = ((a - b) ** 2).sum(-1).sqrt()
        spread = x.var(0).sqrt()

    Use instead:
        distance = torch.linalg.vector_norm(a - b, dim=-1)
        spread = x.std(0)

    Fix safety: safe. The same value to rounding, and more of it: vector_norm does not overflow half-way in float16. Its
    gradient at 0 is 0, a subgradient; that of std is finite too. Unsafe for a mean: before the division the norm of
    10^5 entries may overflow float16.

    References: torch.linalg.vector_norm; patches measurement of gradients at 0 (norm, std and cdist are finite there).
    """

    code = "NS110"
    words = ("sum", "mean", "var")
    requires = (r"sqrt|(\*\*|pow\() *\(?[^\n)]*(0?\.5\b|1 ?/ ?2)",)
    nodes = (cst.Call, cst.BinaryOperation)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, (cst.Call, cst.BinaryOperation))
        sqrt = m.operation(source, node, "sqrt")
        if sqrt is not None and sqrt.plain and not sqrt.inplace:
            radicand = sqrt.input
        else:
            power = m.power_of(source, node, 0.5)
            if power is None:
                return
            radicand = power
        inner = m.operation(source, m.definition(source, radicand), "sum", "mean", "var", result_is_tensor=sqrt is not None)
        if inner is None or m.no_grad_at(source, node) or m.value_of(source, inner.input).detached:
            return
        if inner.name == "var":
            yield from self._variance(node, inner, source)
        else:
            yield from self._norm(node, inner, source)

    def _variance(self, node: cst.BaseExpression, var: m.Operation, source: Source) -> Iterator[Hit]:
        if not m.is_pure(source, var.input) and not source.is_inside(var.node, node):
            yield self.hit(node)
            return
        call, needs = m.sibling_call(source, var.node, "std")
        yield self.hit(node, *replace_with(node, source.code(call), needs))

    def _norm(self, node: cst.BaseExpression, total: m.Operation, source: Source) -> Iterator[Hit]:
        x = m.power_of(source, m.definition(source, total.input), 2)
        if x is None:
            return
        if total.name == "mean" and m.binary(x, "-") is not None:
            return  # the root of a mean squared error is 0 only where a model fits perfectly
        value = m.value_of(source, x)
        if value.is_integer or (value.dtype or "").startswith("complex") or value.kind in ("numpy", "number"):
            return
        if total.keyword("dtype") is not None or total.keyword("out") is not None or len([a for a in total.rest if a.keyword is None]) > 2:
            return
        positional = [a.value for a in total.rest if a.keyword is None]
        if len(positional) == 2 and not (isinstance(positional[1], cst.Name) and positional[1].value in ("True", "False")):
            return  # x.sum(1, 2) sums over both axes
        if not m.is_pure(source, x) and not source.is_inside(x, node):
            yield self.hit(node)
            return
        arguments = [m.argument(source, x)]
        dim, keepdim = total.argument(0, "dim", "axis"), total.argument(1, "keepdim", "keepdims")
        if dim is not None:
            arguments.append(f"dim={source.code(dim)}")
        if keepdim is not None:
            arguments.append(f"keepdim={source.code(keepdim)}")
        spelling = m.spell(source, node, "torch.linalg.vector_norm")
        norm = f"{spelling.text}({', '.join(arguments)})"
        if total.name == "mean":
            if not isinstance(x, cst.Name) or (dim is not None and not _is_one_axis(source, dim)):
                yield self.hit(node)
                return
            count = f"{x.value}.numel()" if dim is None else f"{x.value}.shape[{source.code(dim)}]"
            yield self.hit(node, *replace_with(node, f"{norm} / {count} ** 0.5", spelling.needs_import), safety="unsafe")
            return
        yield self.hit(node, *replace_with(node, norm, spelling.needs_import))


def _is_one_axis(source: Source, dim: cst.BaseExpression) -> bool:
    """Whether a dim is one number for certain, so that `x.shape[dim]` is how many entries a mean is over."""
    number = m.number(source, dim, defaults=False)
    return number is not None and number == int(number)
