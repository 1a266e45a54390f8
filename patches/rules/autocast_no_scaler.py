"""NS505 autocast-no-scaler."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches import training
from patches.rules.backward_in_autocast import is_autocast
from patches.rules.base import AbstractRule, Hit
from patches.source import Source


class AutocastNoScaler(AbstractRule):
    """Training under float16 autocast without a loss scaler.

    What it finds: a `with torch.autocast("cuda")` (or `dtype=torch.float16`, or `torch.cuda.amp.autocast()`) in a function that also
    calls backward and steps an optimizer, in a file that never speaks of a scaler.

    Why it is bad: gradients below 6e-8 are 0 in float16. Without a scale a good part of a network's gradients are, and the
    layers behind them stop learning.

    Example:
        with torch.autocast("cuda"):
            loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()

    Use instead:
        scaler = torch.amp.GradScaler("cuda")
        with torch.autocast("cuda"):
            loss = criterion(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    Fix safety: display. bfloat16, which needs no scaler, is often the better change.

    References: Micikevicius et al. 2018, "Mixed Precision Training", ICLR; PyTorch documentation, torch.amp.
    """

    code = "NS505"
    triggers = ("autocast",)
    nodes = (cst.With,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.With)
        item = next((i.item for i in node.items if is_autocast(source, i.item)), None)
        if item is None or "caler" in source.text or "deepspeed" in source.text or not _is_float16(source, item):
            return
        calls = training.calls(source, source.function_of(node))
        kinds = {c.kind for c in calls}
        if "backward" in kinds and "step" in kinds and not kinds & {"opaque", "scaled backward"}:
            yield self.hit(item)


def _is_float16(source: Source, item: cst.BaseExpression) -> bool:
    """float16 written out, or a CUDA autocast whose dtype is left at its default; anything else (a variable) may be bfloat16."""
    assert isinstance(item, cst.Call)
    full = m.qualified(source, item.func) or ""
    keywords = {arg.keyword.value: arg.value for arg in item.args if arg.keyword is not None}
    plain = [arg.value for arg in item.args if arg.keyword is None and not arg.star]
    if any(arg.star for arg in item.args):
        return False
    cuda_only = full.startswith("torch.cuda.")
    dtype = keywords.get("dtype") or (plain[1] if len(plain) > 1 else None)
    if dtype is not None:
        return m.qualified(source, dtype) in ("torch.float16", "torch.half")
    if cuda_only:
        return True
    device = keywords.get("device_type") or (plain[0] if plain else None)
    return isinstance(device, cst.SimpleString) and device.evaluated_value == "cuda"
