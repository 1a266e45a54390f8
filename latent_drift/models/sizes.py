"""Refusal of sizes that no model can be built with."""

from __future__ import annotations

from latent_drift.errors import UsageError


def require_size(value: int, name: str, owner: str, at_least: int = 1) -> int:
    """`value` itself if it is an integer not below `at_least`.

    Raises:
        UsageError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UsageError(f"{owner}: {name} must be an integer of at least {at_least}; got {value!r}")
    return value
