"""NS503 clip-order."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import training
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_BACKWARD = ("backward", "scaled backward")
_CLIPPERS = ("clip_grad_norm_", "clip_grad_value_", "clip_grad_norm", "clip_grad_value")


class ClipOrder(AbstractRule):
    """Gradient clipping at a place where it does nothing.

    What it finds: in one block of statements, a clip after the step with no backward or step behind it, or a clip between
    zero_grad and the first backward, while nothing is clipped between backward and step.

    Why it is bad: after the step the gradients have been used, before backward they are not there: nothing is clipped, and
    nothing says so.

    Example:
        loss.backward()
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    Use instead:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    Fix safety: display. Moving the line changes every step of the training, and where it belongs is for its author to say.

    References: torch.nn.utils.clip_grad_norm_.
    """

    code = "NS503"
    triggers = ("clip_grad",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.Call)
        callee = node.func.attr.value if isinstance(node.func, cst.Attribute) else node.func.value if isinstance(node.func, cst.Name) else ""
        if callee not in _CLIPPERS:
            return
        block = [c for c in training.calls(source, source.function_of(node)) if c.at is c.node]
        clip = next((c for c in block if c.node is node), None)
        if clip is None:
            return
        block = [c for c in block if c.branches == clip.branches]  # one block: what branches do is not judged
        everything = training.calls(source, source.function_of(node))
        position = block.index(clip)
        before, after = block[:position], block[position + 1 :]
        others = [c for c in everything if c.kind in (*_BACKWARD, "step", "clip", "opaque") and c not in block]
        if others:
            return
        kinds_before, kinds_after = [c.kind for c in before], [c.kind for c in after]
        if "clip" in kinds_before or "clip" in kinds_after or "opaque" in kinds_before + kinds_after:
            return
        too_late = "step" in kinds_before and any(k in _BACKWARD for k in kinds_before) and not any(k in (*_BACKWARD, "step") for k in kinds_after)
        too_early = (
            not any(k in (*_BACKWARD, "step") for k in kinds_before)
            and any(k in _BACKWARD for k in kinds_after)
            and "step" in kinds_after
            and kinds_after.index("step") > min(kinds_after.index(k) for k in _BACKWARD if k in kinds_after)
        )
        if too_late or too_early:
            yield self.hit(node)
