"""NS402 mask-half-overflow."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import dtypes, masking
from patches import matching as m
from patches.edits import AddImport, Replace, Unfixable
from patches.rules.base import AbstractRule, Hit
from patches.rules.mask_neg_inf import softmax_of
from patches.source import Source

_LARGEST_HALF = 65504.0
_LARGEST_FLOAT = 3.5e38  # beyond float32 it is no mask constant either


class MaskHalfOverflow(AbstractRule):
    """A fill constant that float16 does not have.

    What it finds: `masked_fill(mask, c)`, `torch.where(mask, x, c)` or `torch.full_like(x, c)` of a floating tensor
    with a finite constant c beyond +-65504, `x[mask] = c`, and, where the file speaks of float16, `(1 - mask) * c`.

    Why it is bad: in float16 masked_fill raises "value cannot be converted to type at::Half without overflow", and
    where gives -inf. Under autocast the scores of an attention are float16, whatever the model's parameters are.

    Example:
        score = score.masked_fill(mask == 0, -1e9)

    Use instead:
        score = score.masked_fill(mask == 0, torch.finfo(score.dtype).min)

    Fix safety: unsafe. A softmax or a maximum behind the fill gives the same; a sum of filled scores does not, and
    two such masks added overflow to -inf. A mask that is added, and a value that can be given no name, are only shown.

    References: IEEE 754-2019 binary16; torch.finfo.
    """

    code = "NS402"
    words = ("masked_fill", "masked_fill_", "where", "full_like")
    requires = (r"\d{5}|\de\+?\d|\d_\d{3}|\*\* *\d",)
    nodes = (cst.Call, cst.Assign, cst.BinaryOperation)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.BinaryOperation):
            if _is_additive_mask(source, node):
                yield self.hit(node)
            return
        given = _assigned(source, node) if isinstance(node, cst.Assign) else _filled(source, node)
        if given is None:
            return
        filled, constant, found = given
        limit = m.number(source, constant)
        if limit is None or not _LARGEST_HALF < abs(limit) < _LARGEST_FLOAT:
            return
        value = m.value_of(source, filled)
        if value.is_integer or value.kind in ("number", "integer", "numpy", "other", "module") or value.dtype in ("float32", "float64", "bfloat16"):
            return
        if _is_written_as_integer(constant):
            return  # it fills identifiers as a rule
        is_mask = limit < 0 and (isinstance(node, cst.Assign) or (found is not None and not found.keep))
        if not is_mask and not dtypes.is_float16_in_sight(source) and not _feeds_softmax(source, found):
            return  # a distance, or a default in float32; a masked_fill with -1e9 is a mask of scores
        bound = "min" if limit < 0 else "max"
        finfo = m.spell(source, node, "torch.finfo")
        imports = (AddImport(finfo.needs_import),) if finfo.needs_import is not None else ()
        try:
            name, extra = dtypes.named(source, filled, "scores")
        except Unfixable:
            yield self.hit(node)
            return
        parts: dict[cst.CSTNode, str] = {constant: f"{finfo.text}({name}.dtype).{bound}"}
        if isinstance(node, cst.Assign):
            yield self.hit(node, Replace(constant, parts[constant]), *imports)
            return
        if extra:
            parts[filled] = name
        yield self.hit(node, Replace(node, m.rewritten(source, node, parts)), *extra, *imports)


Given = tuple[cst.BaseExpression, cst.BaseExpression, masking.Fill | None]


def _filled(source: Source, node: cst.CSTNode) -> Given | None:
    """What is filled, with what, and by which fill (None: torch.full_like)."""
    found = masking.fill(source, node)
    if found is not None:
        return found.scores, found.value, found
    made = m.operation(source, node, "full_like")
    value = made.argument(0, "fill_value") if made is not None else None
    if made is None or value is None or made.keyword("dtype") is not None:
        return None
    return made.input, value, None


def _assigned(source: Source, node: cst.Assign) -> Given | None:
    """`scores[mask] = c`, for a mask that is one for certain and scores with a name."""
    found = masking.assigned_fill(source, node)
    return (found[0], node.value, None) if found is not None else None


def _is_additive_mask(source: Source, node: cst.BinaryOperation) -> bool:
    """`(1 - mask) * -1e9` where half precision is meant: -inf there, and -inf + -inf where two such masks meet."""
    sides = m.binary(node, "*")
    if sides is None or not dtypes.is_float16_in_sight(source):
        return False
    for mask, constant in (sides, sides[::-1]):
        limit = m.number(source, constant)
        if limit is not None and -_LARGEST_FLOAT < limit < -_LARGEST_HALF:
            value = m.value_of(source, mask)
            return "mask" in source.code(mask).lower() and value.kind in ("tensor", "unknown") and value.dtype not in ("float32", "float64")
    return False


def _is_written_as_integer(constant: cst.BaseExpression) -> bool:
    return isinstance(constant.expression if isinstance(constant, cst.UnaryOperation) else constant, cst.Integer)


def _feeds_softmax(source: Source, found: masking.Fill | None) -> bool:
    return found is not None and softmax_of(source, found) is not None
