"""NS906 audit-sqrt-step."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.audit_scale import rooted
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_STEP = re.compile(r"^(dt|d_t|dts|h|delta_?t|step|step_?size|time_?step|delta_?time|dtau|d_?tau)$|_dt$|^dt_", re.IGNORECASE)
_TIME = re.compile(r"^(t|s|tau|time|times|ts|t_?\w{0,4}|t\d|\w*_time|time_\w+|t_(next|prev|cur|end|start|span|grid|eval))$", re.IGNORECASE)


class AuditSqrtStep(AbstractRule):
    """The square root of a time step that can be negative (audit Q2).

    What it finds: `torch.sqrt(dt)`, `dt ** 0.5`, `math.sqrt(t1 - t0)`: the root of a step or of a difference of times, with no abs or
    clamp around it.

    Why it is bad: a decreasing time grid gives NaN (torch) or raises (math). The audit's remedy, clamp(dt, min=1e-8), runs such a grid
    backwards without noise, silently.

    Example:
        noise = sigma * torch.sqrt(dt) * torch.randn_like(z)

    Use instead:
        if not bool((ts[1:] > ts[:-1]).all()):
            raise ValueError(f"the time grid must increase, got {ts}")

    Fix safety: display. Whether to refuse a decreasing grid or to support reverse time properly is the solver's decision.

    References: audit Q2; Kloeden and Platen 1992, "Numerical Solution of Stochastic Differential Equations", section 10.2.
    """

    code = "NS906"
    triggers = ("sqrt", "0.5", ".5", "1 / 2", "1/2")
    nodes = (cst.Call, cst.BinaryOperation)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        inside = rooted(source, node)
        if inside is not None and _is_step(source, inside):
            yield self.hit(node)


def _is_step(source: Source, node: cst.BaseExpression, depth: int = 0) -> bool:
    if depth > 4:
        return False
    if isinstance(node, cst.Call):
        name = node.func.attr.value if isinstance(node.func, cst.Attribute) else node.func.value if isinstance(node.func, cst.Name) else ""
        if name in ("tensor", "as_tensor", "float", "to", "unsqueeze", "view", "expand", "diff"):
            is_method = isinstance(node.func, cst.Attribute) and m.qualified(source, node.func) is None
            inner = node.func.value if is_method and isinstance(node.func, cst.Attribute) else node.args[0].value if node.args else node
            if inner is node:
                return False
            return _is_step(source, inner, depth + 1) or (name == "diff" and _is_time(inner))
        return False
    if isinstance(node, cst.Subscript):
        return _is_step(source, node.value, depth + 1)
    if isinstance(node, cst.BinaryOperation):
        if isinstance(node.operator, cst.Subtract):
            return _is_time(node.left) and _is_time(node.right)
        return isinstance(node.operator, (cst.Multiply, cst.Divide)) and any(_is_step(source, side, depth + 1) for side in (node.left, node.right))
    if isinstance(node, cst.Attribute):
        return _STEP.search(node.attr.value) is not None
    if isinstance(node, cst.Name):
        made = m.definition(source, node)
        if made is not node:
            if isinstance(made, cst.Call) and isinstance(made.func, cst.Attribute) and made.func.attr.value in ("abs", "clamp", "clamp_min", "clip"):
                return False
            if _is_step(source, made, depth + 1):
                return True
        return _STEP.search(node.value) is not None
    return False


def _is_time(node: cst.BaseExpression) -> bool:
    while isinstance(node, (cst.Subscript, cst.Call)):
        node = node.value if isinstance(node, cst.Subscript) else node.func
    name = node.attr.value if isinstance(node, cst.Attribute) else node.value if isinstance(node, cst.Name) else ""
    return _TIME.search(name) is not None
