"""What may be known of an expression's value, and what is then known of two of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["unknown", "tensor", "numpy", "number", "integer", "module", "other"]
Origin = Literal["unknown", "constant", "noise", "data", "parameter", "network"]

_RANK: dict[Origin, int] = {"constant": 0, "noise": 1, "unknown": 2, "data": 3, "parameter": 4, "network": 5}


@dataclass(frozen=True, slots=True)
class Value:
    """Kind, closed range, dtype (`float64`, `int64`, ... or None), origin, and whether gradients can flow into it."""

    kind: Kind = "unknown"
    low: float = -math.inf
    high: float = math.inf
    dtype: str | None = None
    origin: Origin = "unknown"
    detached: bool = False

    @property
    def is_integer(self) -> bool:
        """An int, or a tensor of an integer or bool dtype."""
        return self.kind == "integer" or (self.dtype is not None and self.dtype.startswith(("int", "uint", "bool", "long", "short")))

    @property
    def is_bounded(self) -> bool:
        """Whether both ends of the range are proven."""
        return math.isfinite(self.low) and math.isfinite(self.high)


UNKNOWN = Value()


def join(values: Sequence[Value]) -> Value:
    """What is true of every one of `values`."""
    if not values:
        return UNKNOWN
    first = values[0]
    kinds = {value.kind for value in values}
    dtypes = {value.dtype for value in values}
    return Value(
        kind=first.kind if len(kinds) == 1 else "unknown",
        low=min(value.low for value in values),
        high=max(value.high for value in values),
        dtype=first.dtype if len(dtypes) == 1 else None,
        origin=max((value.origin for value in values), key=_RANK.__getitem__),
        detached=all(value.detached for value in values),
    )


def combine(left: Value, right: Value, low: float, high: float) -> Value:
    """The value of an operator between two: its range is given, the rest follows from both sides."""
    kinds = (left.kind, right.kind)
    kind: Kind = "unknown"
    if "tensor" in kinds:
        kind = "tensor"
    elif "numpy" in kinds:
        kind = "numpy"
    elif "unknown" not in kinds and "other" not in kinds and "module" not in kinds:
        kind = "integer" if kinds == ("integer", "integer") else "number"
    dtype = left.dtype if left.dtype == right.dtype else left.dtype if right.kind in ("number", "integer") else None
    if right.dtype and left.kind in ("number", "integer"):
        dtype = right.dtype
    if dtype is not None and dtype.startswith(("int", "bool", "uint")) and not (left.is_integer and right.is_integer):
        dtype = None
    if "float64" in (left.dtype if left.kind == "tensor" else None, right.dtype if right.kind == "tensor" else None):
        dtype = "float64"
    origin = max((left.origin, right.origin), key=_RANK.__getitem__)
    return Value(kind, low, high, dtype, origin, left.detached and right.detached)
