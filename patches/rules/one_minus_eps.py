"""NS302 one-minus-eps."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import dtypes
from patches import matching as m
from patches.rules.base import AbstractRule, Hit, replace_with
from patches.source import Source

# 1 - e rounds to 1 up to half the spacing of numbers below 1, which is eps / 2.
_ROUNDS_TO_ONE = {"float64": 2.0**-54, "float32": 2.0**-25, "bfloat16": 2.0**-9, "float16": 2.0**-12}


class OneMinusEps(AbstractRule):
    """An upper end 1 - e that is 1.

    What it finds: `x.clamp(max=1 - e)` (or `clamp(e, 1 - e)`) of a tensor with an e so small that 1 - e rounds
    to 1 in the dtype that the code runs in: up to 3e-8 in float32, 2.4e-4 in float16 (when the file speaks of
    half or autocast, or `--dtype float16`), 2e-3 with `--dtype bfloat16`.

    Why it is bad: the clamp keeps nothing below 1. log(1 - x), logit(x) and atanh(x) behind it are as
    infinite as before.

    Example:
        p = p.clamp(1e-8, 1 - 1e-8)

    Use instead:
        p = p.clamp(1e-8, 1 - max(1e-8, torch.finfo(p.dtype).eps))

    Fix safety: safe. Where 1 - e was below 1 it stays what it was (float64 and, for larger e, float32); where it
    was 1 the end moves by two units in the last place, and only values that near to 1 with it.

    References: IEEE 754-2019; the audit's own remedy clamp(p, 1e-7, 1 - 1e-7) gives an infinite loss in float16.
    """

    code = "NS302"
    words = ("clamp", "clamp_", "clip", "clip_", "minimum", "clamp_max", "clamp_max_")
    requires = (r"\b1(\.0*)? *-|0?\.9999",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        clamp = m.operation(source, node, "clamp", "clamp_max")
        if clamp is None:
            return
        upper = clamp.argument(1, "max") if clamp.name == "clamp" else clamp.argument(0, "max")
        if upper is None:
            return
        epsilon = m.one_minus(source, m.definition(source, upper)) if not isinstance(upper, cst.Float) else None
        size = m.number(source, epsilon) if epsilon is not None else _below_one(source, upper)
        if size is None or not 0 < size <= _limit(source):
            return
        value = m.value_of(source, clamp.input)
        if value.kind in ("numpy", "number", "integer", "other") or value.is_integer or value.dtype == "float64" or not _is_tensor(source, clamp):
            return
        if value.origin == "noise" or _is_drawn(source, clamp.input):
            return  # torch.rand is below 1 by itself
        if value.dtype in _ROUNDS_TO_ONE and size > _ROUNDS_TO_ONE[value.dtype]:
            return
        dtype = dtypes.carrier(source, clamp.input)  # no integer: a clamp of those below 1 - e would be at 0
        if dtype is None or epsilon is None or not source.is_inside(epsilon, upper):
            yield self.hit(clamp.node)
            return
        finfo = m.spell(source, clamp.node, "torch.finfo")
        yield self.hit(clamp.node, *replace_with(epsilon, f"max({m.argument(source, epsilon)}, {finfo.text}({dtype}.dtype).eps)", finfo.needs_import))


def _below_one(source: Source, upper: cst.BaseExpression) -> float | None:
    written = m.number(source, upper)
    return 1.0 - written if written is not None and 0.99 < written < 1.0 else None


def _is_tensor(source: Source, clamp: m.Operation) -> bool:
    return clamp.form == "function" or m.is_tensor(source, clamp.input)


def _is_drawn(source: Source, node: cst.BaseExpression) -> bool:
    return m.operation(source, m.definition(source, node), "rand", "rand_like") is not None


def _limit(source: Source) -> float:
    if source.settings.dtype is not None:
        return _ROUNDS_TO_ONE.get({"half": "float16", "fp16": "float16", "bf16": "bfloat16"}.get(source.settings.dtype, source.settings.dtype), 0.0)
    return _ROUNDS_TO_ONE["float16" if dtypes.is_float16_in_sight(source) else "float32"]
