"""NS504 backward-in-autocast."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source, dotted_name

AUTOCASTS = ("torch.autocast", "torch.amp.autocast", "torch.cuda.amp.autocast", "torch.cpu.amp.autocast", "torch.amp.autocast_mode.autocast",
             "torch.cuda.amp.autocast_mode.autocast")  # fmt: skip


class BackwardInAutocast(AbstractRule):
    """A backward pass inside the autocast block.

    What it finds: `loss.backward()` or `scaler.scale(loss).backward()` under `with torch.autocast(...)` of the same function.

    Why it is bad: backward runs in the dtypes that the forward chose, with or without the block; inside it only what
    user-written backward code and double backward compute is cast again, to float16 at the worst moment. PyTorch advises against it.

    Example:
        with torch.autocast("cuda"):
            loss = model(x).mean()
            loss.backward()

    Use instead:
        with torch.autocast("cuda"):
            loss = model(x).mean()
        loss.backward()

    Fix safety: display. Dedenting the lines behind it is a matter of layout.

    References: torch.autocast documentation ("Backward passes under autocast are not recommended").
    """

    code = "NS504"
    triggers = ("autocast",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.Call)
        if not isinstance(node.func, cst.Attribute) or node.func.attr.value != "backward":
            return
        owner = node.func.value
        name = dotted_name(owner)
        scaled = isinstance(owner, cst.Call) and isinstance(owner.func, cst.Attribute) and owner.func.attr.value == "scale"
        if not scaled and (name is None or "loss" not in name.lower() or (node.args and node.args[0].keyword is None)):
            return
        for item in source.with_items(node):
            if is_autocast(source, item):
                yield self.hit(node)
                return


def is_autocast(source: Source, item: cst.BaseExpression) -> bool:
    """Whether a context manager is torch's autocast, and not one that is switched off."""
    if not isinstance(item, cst.Call) or m.qualified(source, item.func) not in AUTOCASTS:
        return False
    enabled = next((arg.value for arg in item.args if arg.keyword is not None and arg.keyword.value == "enabled"), None)
    return not (isinstance(enabled, cst.Name) and enabled.value == "False")
