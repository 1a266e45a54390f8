"""NS203 exp-then-clamp."""

from __future__ import annotations

import math
from collections.abc import Iterator

import libcst as cst

from patches import flow
from patches import matching as m
from patches.edits import Replace
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_LARGEST_ARGUMENTS = (11.089, 88.72, 709.78)  # log of the largest float16, float32 (bfloat16 alike) and float64, rounded toward zero


class ExpThenClamp(AbstractRule):
    """An exponential that is clamped from above after the fact.

    What it finds: `exp(x).clamp(max=c)` in any spelling, where x is not bounded and gradients flow.

    Why it is bad: the value is c but the gradient is 0 (of the clamp) times inf (of the exp) = NaN as
    soon as exp(x) overflows: x > 88.7 in float32, 11.09 in float16.

    Example:
        scale = torch.exp(h).clamp(max=1e4)

    Use instead:
        scale = torch.exp(h.clamp(max=9.4)).clamp(max=1e4)    # a little above log(1e4) = 9.21

    Fix safety: safe. The inner bound lies far enough above log(c) that the outer clamp still decides the
    value, so every finite value and gradient is bitwise the old one; beyond it the gradient is 0, not NaN.
    In float16 a c close to or above 65504 cannot be helped by a constant: exp reaches inf before c there.

    References: PyTorch issue 7673 (NaN from masked infinities); test_rules_are_equivalent_when_run.
    """

    code = "NS203"
    words = ("exp", "exp_")
    requires = (r"clamp|clip",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        clamp = m.operation(source, node, "clamp", "clamp_max", result_is_tensor=True)
        if clamp is None or m.no_grad_at(source, node):
            return
        upper = clamp.argument(1, "max") if clamp.name == "clamp" else clamp.argument(0, "max")
        if upper is None or (isinstance(upper, cst.Name) and upper.value == "None"):
            return
        exp = m.operation(source, m.definition(source, clamp.input), "exp")
        if exp is None or not exp.plain:
            return
        if exp.node is not clamp.input and len(flow.uses_of(source, clamp.input)) > 1:
            return  # the exponential itself is used too: the clamp is not its guard (PPO's clipped ratio)
        value = m.value_of(source, exp.input)
        if value.high <= _LARGEST_ARGUMENTS[0] or value.dtype == "float64" or value.is_integer or value.detached:
            return
        limit = m.number(source, upper)
        if limit is None or not limit > 0 or exp.node is not clamp.input:
            yield self.hit(node)
            return
        if math.isinf(limit) or (limit == 1 and not source.settings.fired):
            return  # min(1, exp(-dE)) is a probability of acceptance or a truncated weight: drawn from, not differentiated
        bound = inner_bound(limit)
        if value.high <= bound:
            return
        yield self.hit(node, Replace(exp.input, f"{m.operand(source, exp.input)}.clamp(max={bound:.6g})"))


def inner_bound(limit: float) -> float:
    """A bound on the argument of exp, above log(limit) by more than any dtype's rounding, and finite where log(limit) is.

    bfloat16 keeps 8 bits, so a constant may come out lower by 1/256 of itself: 1/64 and 0.05 are added.
    """
    needed = math.log(limit)
    wanted = needed + abs(needed) / 64 + 0.05
    for largest in _LARGEST_ARGUMENTS:
        if needed < largest:
            return min(math.ceil(wanted * 100) / 100, largest)
    return needed
