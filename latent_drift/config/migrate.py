"""Old documents brought to the current schema by pure functions, one per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from latent_drift.config import v0
from latent_drift.config.v1 import SCHEMA_VERSION
from latent_drift.errors import ConfigError

MIGRATIONS: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {0: v0.to_v1}
"""Schema version -> the function that makes the next version's document."""


def migrate(document: Mapping[str, Any], origin: str = "document") -> dict[str, Any]:
    """The document in the current schema; one that is current already is copied as it is.

    Raises:
        ConfigError: the schema version is missing, is no whole number, or is newer than this installation knows.
    """
    version = document.get("schema_version")
    if version is None:
        raise ConfigError(f"{origin}: schema_version: missing; the current one is {SCHEMA_VERSION}")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ConfigError(f"{origin}: schema_version: expected a whole number, got {version!r}")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{origin}: schema_version: {version} is newer than this installation understands ({SCHEMA_VERSION}). Upgrade latent-drift."
        )
    result = dict(document)
    while version < SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise ConfigError(
                f"{origin}: schema_version: there has never been a schema {version}; known: {', '.join(map(str, [*MIGRATIONS, SCHEMA_VERSION]))}"
            )
        result = MIGRATIONS[version](result)
        version = result["schema_version"]
    return result
