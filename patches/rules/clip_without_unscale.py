"""NS502 clip-without-unscale."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import flow, training
from patches import matching as m
from patches.edits import AddLines, Edit
from patches.rules.base import AbstractRule, Hit
from patches.source import Branch, Source


class ClipWithoutUnscale(AbstractRule):
    """Gradients that are clipped while they still carry the loss scale.

    What it finds: a `clip_grad_norm_` or `clip_grad_value_` after `scaler.scale(loss).backward()` and before
    `scaler.step(optimizer)`, with no `scaler.unscale_(optimizer)` before it. Branches are followed: `if scaler is not None:`
    around the unscale is enough; a helper of the file that unscales is too.

    Why it is bad: the gradients are 65536 times what they should be, so every step is clipped to max_norm / 65536:
    the model hardly learns, and the more so the better the scale.

    Example:
        scaler.scale(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)

    Use instead:
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)

    Fix safety: unsafe. The steps become as large as they were meant to be. The unscale is put under the condition that the
    backward stands under; scaler.step does not unscale a second time.

    References: PyTorch documentation, "Automatic Mixed Precision examples", section Gradient clipping.
    """

    code = "NS502"
    triggers = ("clip_grad", "clip_gradients")
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.Call)
        callee = node.func.attr.value if isinstance(node.func, cst.Attribute) else node.func.value if isinstance(node.func, cst.Name) else ""
        if callee.rstrip("_") not in ("clip_grad_norm", "clip_grad_value", "clip_gradients", "clip_grad", "clip_grads"):
            return
        if isinstance(node.func, cst.Attribute) and _is_somebodys(source, node.func.value):
            return
        sequence = training.calls(source, source.function_of(node))
        position = next((i for i, c in enumerate(sequence) if c.node is node), None)
        if position is None:
            return
        clip = sequence[position]
        before = [c for c in sequence[:position] if not training.are_exclusive(c.branches, clip.branches)]
        backward = next((c for c in reversed(before) if c.kind in ("scaled backward", "backward")), None)
        scaled = next((c for c in reversed(before) if c.kind == "scaled backward"), None)
        if scaled is None or backward is None or (backward is not scaled and not training.are_exclusive(backward.branches, scaled.branches)):
            return
        if any(c.kind in ("unscale", "opaque") for c in before[before.index(scaled) :]):
            return
        after = [c for c in sequence[position + 1 :] if c.kind == "step" and c.owner and c.scaler is not None]
        step = next((c for c in after if source.code(c.scaler or c.node) == scaled.owner), None)
        if step is None:
            return
        yield self.hit(node, *_fix(source, clip, scaled, step))


def _is_somebodys(source: Source, owner: cst.BaseExpression) -> bool:
    """`accelerator.clip_grad_norm_`, `model.clip_grad_norm_`: methods that may unscale by themselves (torch's functions live in a module)."""
    return m.qualified(source, owner) is None


def _fix(source: Source, clip: training.TrainingCall, scaled: training.TrainingCall, step: training.TrainingCall) -> tuple[Edit, ...]:
    if scaled.at is not scaled.node or step.at is not step.node or step.optimizer is None:
        return ()
    if not isinstance(step.optimizer, (cst.Name, cst.Attribute)) or step.scaler is None:
        return ()
    unscale = f"{source.code(step.scaler)}.unscale_({source.code(step.optimizer)})"
    conditions: list[str] = []
    for branch in scaled.branches:
        if any(branch[0] is b[0] and branch[1] == b[1] for b in clip.branches):
            continue
        condition = _condition(source, branch, clip.node)
        if condition is None:
            return ()
        conditions.append(condition)
    if len(conditions) > 1:
        return ()
    if not conditions:
        return (AddLines(clip.node, (unscale,), "before"),)
    return (AddLines(clip.node, (f"if {conditions[0]}:", f"{source.module.default_indent}{unscale}"), "before"),)


def _condition(source: Source, branch: Branch, at: cst.CSTNode) -> str | None:
    """The test under which an arm of an `if` runs, if it can be asked again at `at`."""
    owner, arm = branch
    if not isinstance(owner, cst.If) or not m.is_pure(source, owner.test) or not flow.is_stable(source, owner.test, at):
        return None
    if arm == "body":
        return m.argument(source, owner.test)
    return f"not {m.operand(source, owner.test)}" if isinstance(owner.orelse, cst.Else) else None
