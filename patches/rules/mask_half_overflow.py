"""NS402 mask-half-overflow."""

from __future__ import annotations

import math
from collections.abc import Iterator

import libcst as cst

from patches import dtypes, masking
from patches import matching as m
from patches.edits import AddImport, Replace, Unfixable
from patches.rules.base import AbstractRule, Hit
from patches.rules.mask_neg_inf import softmax_of
from patches.source import Source

_LARGEST_HALF = 65504.0


class MaskHalfOverflow(AbstractRule):
    """A fill constant that float16 does not have.

    What it finds: `masked_fill(mask, c)`, `torch.where(mask, x, c)` or `torch.full_like(x, c)` of a floating tensor
    with a finite constant c beyond +-65504.

    Why it is bad: in float16 masked_fill raises "value cannot be converted to type at::Half without overflow", and
    where gives -inf. Under autocast the scores of an attention are float16, whatever the model's parameters are.

    Example:
        score = score.masked_fill(mask == 0, -1e9)

    Use instead:
        score = score.masked_fill(mask == 0, torch.finfo(score.dtype).min)

    Fix safety: unsafe. A softmax or a maximum behind the fill gives the same; a sum of filled scores does not, and
    two such masks added overflow to -inf. Where the filled value has no name, nothing is written.

    References: IEEE 754-2019 binary16; torch.finfo.
    """

    code = "NS402"
    words = ("masked_fill", "masked_fill_", "where", "full_like")
    requires = (r"\d{5}|\de\+?\d|\d_\d{3}|\*\* *\d",)
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        found = masking.fill(source, node)
        if found is not None:
            filled, constant = found.scores, found.value
        else:
            made = m.operation(source, node, "full_like")
            value_given = made.argument(0, "fill_value") if made is not None else None
            if made is None or value_given is None or made.keyword("dtype") is not None:
                return
            filled, constant = made.input, value_given
        limit = m.number(source, constant)
        if limit is None or not _LARGEST_HALF < abs(limit) < math.inf or abs(limit) > 3.5e38:
            return
        value = m.value_of(source, filled)
        if value.is_integer or value.kind in ("number", "integer", "numpy", "other", "module") or value.dtype in ("float32", "float64", "bfloat16"):
            return
        if _is_written_as_integer(constant):
            return  # it fills identifiers as a rule
        if (limit > 0 or found is None or found.keep) and not dtypes.is_float16_in_sight(source) and not _feeds_softmax(source, found):
            return  # a distance, or a default in float32; a masked_fill with -1e9 is a mask of scores
        bound = "min" if limit < 0 else "max"
        finfo = m.spell(source, node, "torch.finfo")
        imports = (AddImport(finfo.needs_import),) if finfo.needs_import is not None else ()
        assert isinstance(node, cst.Call)
        try:
            name, extra = dtypes.named(source, filled, "scores")
        except Unfixable:
            yield self.hit(node)
            return
        parts: dict[cst.CSTNode, str] = {constant: f"{finfo.text}({name}.dtype).{bound}"}
        if extra:
            parts[filled] = name
        yield self.hit(node, Replace(node, m.rewritten(source, node, parts)), *extra, *imports)


def _is_written_as_integer(constant: cst.BaseExpression) -> bool:
    return isinstance(constant.expression if isinstance(constant, cst.UnaryOperation) else constant, cst.Integer)


def _feeds_softmax(source: Source, found: masking.Fill | None) -> bool:
    return found is not None and softmax_of(source, found) is not None
