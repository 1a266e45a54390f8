"""NS113 entropy."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import Unfixable
from patches.rules.base import AbstractRule, Hit
from patches.source import Source


class Entropy(AbstractRule):
    """p log p of probabilities that were computed from logits.

    What it finds: `p * log(p)` and `p * log(p + eps)` with p a softmax, direct or through a local name, and
    `d.probs * log(d.probs)` of a distribution.

    Why it is bad: where p underflows, p log p is 0 * -inf = NaN, in the value or in the gradient
    (torch.special.entr has the value right and a NaN gradient there too). An epsilon hides it at the cost of a bias.

    Example:
        p = F.softmax(logits, dim=-1)
        entropy = -(p * torch.log(p + 1e-8)).sum(-1)

    Use instead:
        p = F.softmax(logits, dim=-1)
        entropy = -(p * F.log_softmax(logits, dim=-1)).sum(-1)

    Fix safety: unsafe: an epsilon's bias disappears, and 0 * -inf becomes 0. For a distribution it is shown only:
    use its entropy(), made from logits.

    References: torch.distributions.Categorical.entropy; torch.special.entr.
    """

    code = "NS113"
    triggers = ("softmax", "Softmax", "probs")
    requires = (r"\blog(1p)?_?\b",)
    nodes = (cst.BinaryOperation, cst.Call)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        sides = m.binary(node, "*")
        if sides is None:
            product = m.operation(source, node, "mul")
            if product is None or len(product.rest) != 1:
                return
            sides = (product.input, product.rest[0].value)
        for p, other in (sides, sides[::-1]):
            log = m.operation(source, m.definition(source, other), "log")
            if log is None or not log.plain:
                continue
            argument = self._without_epsilon(source, log.input)
            if not m.same(source, p, argument) and source.code(m.definition(source, p)) != source.code(m.definition(source, argument)):
                continue
            yield from self._found(source, node, log, p)
            return

    def _found(self, source: Source, node: cst.CSTNode, log: m.Operation, p: cst.BaseExpression) -> Iterator[Hit]:
        softmax = m.operation(source, m.definition(source, p), "softmax")
        if softmax is None:
            if isinstance(p, cst.Attribute) and p.attr.value == "probs" and m.imports_torch(source):
                yield self.hit(node)
            return
        if m.no_grad_at(source, node) and m.value_of(source, p).dtype == "float64":
            return
        try:
            edits = m.log_softmax_in_place_of(source, log.node, softmax, direct=False)
        except Unfixable:
            edits = ()
        yield self.hit(node, *edits)

    @staticmethod
    def _without_epsilon(source: Source, node: cst.BaseExpression) -> cst.BaseExpression:
        sides = m.binary(node, "+")
        if sides is not None:
            for main, rest in (sides, sides[::-1]):
                added = m.number(source, rest)
                if (added is not None and 0 < added <= 1e-2) or (added is None and m.is_epsilon_name(rest)):
                    return main
        found = m.operation(source, node, "clamp", "clamp_min", result_is_tensor=True)
        if found is not None and found.argument(0, "min") is not None:
            return found.input
        return node
