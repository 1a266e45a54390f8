"""Whether a gradient that is not finite reaches anybody: what `relu`, `clamp`, `where` or a mask select away harms nothing.

`x.clamp(min=0).sqrt()` sends back 1 / 0 = inf for every negative x, and the backward pass of `clamp` drops it: the script is healthy. The nodes
behind are asked themselves, with the very gradient that torch would have sent them; they compute it without touching anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latent_drift.numerics.finite import is_finite

_in_transform = torch._C._functorch.peek_interpreter_stack

_STEPS = 12
"""Most nodes that are asked. What selects stands next to what overflows, or a few elementwise operations before it."""

_ASKED = frozenset(
    {
        *("Relu", "Threshold", "Hardtanh", "Clamp", "ClampMin", "ClampMax", "Where", "MaskedFill", "Maximum", "Minimum", "Fmax", "Fmin"),
        *("Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Abs", "Pow", "Exp", "Expm1", "Log", "Log1P", "Sqrt", "Reciprocal", "LeakyRelu"),
        *("View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "T", "Unsqueeze", "Squeeze", "Expand", "Clone", "ToCopy", "Alias"),
        *("Sum", "Mean", "Select", "Slice", "Index", "MaskedSelect", "Gather", "IndexSelect", "Tril", "Triu", "Diagonal"),
    }
)
"""Nodes of torch's own, with one gradient coming in."""

_PASSED_THROUGH = ("_FilterBackward", "_ResultBackward")
"""Our own: an identity, but for what they see to themselves."""


def is_dropped(edge: tuple[Any, int], gradient: Tensor) -> bool:
    """Whether nothing but finite numbers comes of a gradient that goes along an edge of the graph.

    Args:
        edge: of a node's `next_functions`: the node that the gradient goes to, and at which of its results.
        gradient: what goes there, not finite.

    Returns:
        False where it cannot be told: at a leaf, at a node of another kind, where what a node saved lies somewhere else (a checkpoint), inside a
        transform of torch.func.
    """
    if _in_transform() is not None:
        return False
    pending, left = [(edge, gradient.detach())], _STEPS
    with torch.no_grad():
        while pending:
            (node, position), arriving = pending.pop()
            if node is None or is_finite(arriving):
                continue
            left -= 1
            name = node.name()
            if name in _PASSED_THROUGH:
                pending.append((node.next_functions[0], arriving))
                continue
            if left < 0 or position != 0 or name.rstrip("0123456789").removesuffix("Backward") not in _ASKED or not _lies_here(node):
                return False
            try:
                sent = node(arriving)
            except RuntimeError:  # what it saved was changed or given back since: then it is asked by the engine, and says so itself
                return False
            sent = sent if isinstance(sent, tuple) else (sent,)
            pending += [(following, g) for following, g in zip(node.next_functions, sent, strict=False) if g is not None]
    return True


def _lies_here(node: Any) -> bool:
    """Whether what a node saved can be read without calling anybody (a checkpoint computes it anew, and only once)."""
    for name in dir(node):
        if name.startswith("_raw_saved_"):
            saved = getattr(node, name)
            for each in saved if isinstance(saved, tuple | list) else (saved,):
                if getattr(each, "unpack_hook", node) is not None:
                    return False
    return True
