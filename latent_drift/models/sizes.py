"""Refusal of sizes that no model can be built with."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from latent_drift.errors import UsageError


def require_size(value: SupportsIndex, name: str, owner: str, at_least: int = 1) -> int:
    """`value` as an int if it is an integer (of numpy, say) not below `at_least`.

    Raises:
        UsageError: anything else, bool included.
    """
    try:
        size = at_least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = at_least - 1
    if size < at_least:
        raise UsageError(f"{owner}: {name} must be an integer of at least {at_least}; got {value!r}")
    return size
