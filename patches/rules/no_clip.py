"""NS501 no-clip."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import libcst as cst

from patches import matching as m
from patches import training
from patches.edits import AddImport, AddLines, Edit
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_CLIPPED_ELSEWHERE = re.compile(
    r"gradient_clip|clip_grad|grad_clip|max_grad_norm|clip_norm|automatic_optimization|register_hook\([^\n]*cla?[mi]p|\.clip_|privacy_engine|PrivacyEngine"
)
_BACKWARD = ("backward", "scaled backward")


class NoClip(AbstractRule):
    """A step of the optimizer on gradients that nothing bounds.

    What it finds: `backward()` and then `optimizer.step()` (or `scaler.step(optimizer)`) with nothing between that clips
    or writes the gradients. Functions of the file are looked through, in both directions; clipping in a hook, by a
    trainer or by the optimizer itself keeps it quiet, as do schedulers, environments and closures. Off by default: of 26
    such sites in public code half needed none. A run under `instrument` tells which: its NS506 and NS507 name these lines.

    Why it is bad: one bad batch gives a gradient a thousand times the usual, and one step on it can undo the run.

    Example:
        loss.backward()
        optimizer.step()

    Use instead:
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm=1.0)
        optimizer.step()

    Fix safety: unsafe. Steps whose gradient norm is above 1.0 become smaller. The optimizer's own param_groups are clipped:
    right whatever the model is called, and when there are two. Under a loss scaler the gradients are unscaled first. Clipping
    does not repair a gradient that is Inf or NaN (it spreads), and it does not bound AdamW's step, which does not depend on
    the gradient's scale: those are the business of the operation that made it.

    References: Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks"; audit G1-G3.
    """

    code = "NS501"
    triggers = (".step(",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.Call)
        for step, before in training.steps(source, node):
            backward = next((c for c in reversed(before) if c.kind in _BACKWARD), None)
            if backward is None:
                continue
            after_backward = before[before.index(backward) :]
            if any(c.kind in ("clip", "opaque") for c in after_backward) or _is_clipped_elsewhere(source, step):
                return
            yield self.hit(node, *_fix(source, step, after_backward))
            if source.settings.audit:
                yield from self._companions(before, backward)
            return

    def _companions(self, before: Sequence[training.TrainingCall], backward: training.TrainingCall) -> Iterator[Hit]:
        """The audit names the whole group of lines: the zero_grad and the backward of an unclipped step too."""
        yield self.hit(backward.node, message=f"{self.finding.summary}: this is the backward of such a step; {self.finding.remedy}")
        zero = next((c for c in reversed(before) if c.kind == "zero"), None)
        if zero is not None:
            yield self.hit(zero.node, message=f"{self.finding.summary}: this zero_grad belongs to such a step; {self.finding.remedy}")


def _is_clipped_elsewhere(source: Source, step: training.TrainingCall) -> bool:
    """Whether the class (else the function, else the module) around the step speaks of clipping: a hook, a setting, a trainer's argument."""
    place: cst.CSTNode = source.class_of(step.node) or source.function_of(step.node) or source.module
    memo: dict[cst.CSTNode, bool] = source.memo.setdefault("clipped_elsewhere", {})
    if place not in memo:
        text = source.text if place is source.module else source.code(place)
        memo[place] = _CLIPPED_ELSEWHERE.search(_without_functions(source) if place is source.module else text) is not None
    return memo[place]


def _without_functions(source: Source) -> str:
    """The module's own level: what other functions clip is their business, unless they are called (the sequence sees that)."""
    return "".join(source.code(s) for s in source.module.body if not isinstance(s, (cst.FunctionDef, cst.ClassDef)))


def _fix(source: Source, step: training.TrainingCall, after_backward: Sequence[training.TrainingCall]) -> tuple[Edit, ...]:
    optimizer = step.optimizer
    if optimizer is None or not m.is_pure(source, optimizer) or not isinstance(source.parents.get(step.node), (cst.Expr, cst.Assign)):
        return ()
    if isinstance(optimizer, cst.Attribute) and not isinstance(optimizer.value, (cst.Name, cst.Attribute)):
        return ()
    clip = m.spell(source, step.node, "torch.nn.utils.clip_grad_norm_")
    owner = source.code(optimizer)
    lines = [f'{clip.text}([p for group in {owner}.param_groups for p in group["params"]], max_norm=1.0)']
    if step.scaler is not None and not any(c.kind == "unscale" for c in after_backward):
        lines.insert(0, f"{source.code(step.scaler)}.unscale_({owner})")
    imports = (AddImport(clip.needs_import),) if clip.needs_import is not None else ()
    return (AddLines(step.node, tuple(lines), "before"), *imports)
