"""NS603 probs-distribution."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.edits import AddImport, Edit, Replace, Unfixable
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_SOFTMAX = ("Categorical", "OneHotCategorical", "OneHotCategoricalStraightThrough", "RelaxedOneHotCategorical", "Multinomial")
_SIGMOID = ("Bernoulli", "ContinuousBernoulli", "RelaxedBernoulli", "Geometric", "Binomial", "NegativeBinomial")
_PROBS_FIRST = ("Categorical", "OneHotCategorical", "OneHotCategoricalStraightThrough", "Bernoulli", "ContinuousBernoulli", "Geometric")
_READS_NO_LOG = frozenset(("sample", "mode", "mean", "probs", "sample_n"))


class ProbsDistribution(AbstractRule):
    """A distribution that is given probabilities although the logits are at hand.

    What it finds: `Categorical(softmax(x))`, `Bernoulli(sigmoid(x))` and their relatives, written there or through one local name,
    where more than a sample is taken and gradients flow.

    Why it is bad: probabilities below the dtype's eps are clamped (1.2e-7 in float32, 1e-3 in float16): log_prob of a rare event is
    wrong by any amount, its gradient is 0, and the entropy with it.

    Example:
        dist = Categorical(F.softmax(logits, dim=-1))

    Use instead:
        dist = Categorical(logits=logits)

    Fix safety: safe where the softmax is written in the call: the same distribution, exact where the old one was clamped. A softmax
    over another dim than the last keeps it (`logits=F.log_softmax(x, dim=1)`). Through a name it is unsafe: the probabilities may have
    been looked at in between.

    References: torch.distributions.utils.clamp_probs; torch.distributions.Categorical.
    """

    code = "NS603"
    triggers = ("softmax", "Softmax", "sigmoid", "Sigmoid", "expit")
    requires = ("distributions",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.Call)
        full = m.qualified(source, node.func) or ""
        name = full.rpartition(".")[2]
        if (
            not full.startswith(("torch.distributions.", "pyro.distributions."))
            or name not in (*_SOFTMAX, *_SIGMOID)
            or any(a.star for a in node.args)
        ):
            return
        given = next((a for a in node.args if a.keyword is not None and a.keyword.value == "probs"), None)
        if given is None and name in _PROBS_FIRST and node.args and node.args[0].keyword is None:
            given = node.args[0]
        if given is None or m.no_grad_at(source, node) or _only_sampled(source, node):
            return
        made = m.definition(source, given.value)
        wanted = "softmax" if name in _SOFTMAX else "sigmoid"
        link = m.operation(source, made, wanted)
        if link is None or link.inplace:
            return
        direct = made is given.value
        try:
            edits = _fix(source, node, given, link, direct)
        except Unfixable:
            edits = ()
        yield self.hit(node, *edits, safety=None if direct or not edits else "unsafe")


def _fix(source: Source, node: cst.Call, given: cst.Arg, link: m.Operation, direct: bool) -> tuple[Edit, ...]:
    dim = link.argument(0, "dim") if link.name == "softmax" else None
    last = link.name == "sigmoid" or m.number(source, dim) == -1
    if link.keyword("dtype", "_stacklevel") is not None or len(link.rest) > 1 or (link.form == "module" and not last):
        raise Unfixable("the softmax converts its input, or its dim is not known here")
    text, extra = (m.argument(source, link.input), ()) if direct else m.reuse(source, link.input, "logits")
    needs = None
    if not last:
        if dim is None or (isinstance(dim, cst.Name) and dim.value == "None"):
            raise Unfixable("a softmax without a dim picks one by the number of axes")
        call, needs = m.sibling_call(source, link.node, "log_softmax")
        text = source.code(call) if direct else source.code(call).replace(source.code(link.input), text, 1)
    if given.keyword is not None:
        edits: tuple[Edit, ...] = (Replace(given.keyword, "logits"), Replace(given.value, text))
        if given.value.lpar:
            edits = (Replace(node, m.rewritten(source, node, {given.keyword: "logits", given.value: text})),)
    else:
        later = node.args[node.args.index(given) + 1 :]
        if any(arg.keyword is None for arg in later):
            raise Unfixable("a positional argument follows")
        edits = (Replace(node, m.rewritten(source, node, {given.value: f"logits={text}"})),)
    return (*edits, *extra, *((AddImport(needs),) if needs is not None else ()))


def _only_sampled(source: Source, node: cst.Call) -> bool:
    """Whether nothing but samples are taken: drawing from clamped probabilities is as good."""
    parent = source.parents.get(node)
    if isinstance(parent, cst.Attribute):
        return parent.attr.value in _READS_NO_LOG
    if not isinstance(parent, cst.Assign) or len(parent.targets) != 1 or not isinstance(parent.targets[0].target, cst.Name):
        return False
    name = parent.targets[0].target.value
    function = source.function_of(node) or source.module
    uses = [n for n in source.nodes(cst.Name) if isinstance(n, cst.Name) and n.value == name and source.is_inside(n, function)]
    reads = [source.parents.get(n) for n in uses if n is not parent.targets[0].target]
    return bool(reads) and all(isinstance(r, cst.Attribute) and r.attr.value in _READS_NO_LOG for r in reads)
