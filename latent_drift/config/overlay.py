"""Laying one mapping of values over another, and the dotted paths that name single values.

A path is the keys joined by dots (`gradient.clip.max_norm`). Lists are values, not containers.
A mapping with a key `kind` is one of several alternatives: laying another kind over it replaces it whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from latent_drift.errors import ConfigError

KIND = "kind"
"""The discriminator of every tagged union in a config."""


def expand(mapping: Mapping[str, Any], where: str = "overrides") -> dict[str, Any]:
    """The nested form of a mapping whose keys may be dotted paths: `{"a.b": 1}` is `{"a": {"b": 1}}`.

    Raises:
        ConfigError: a key is no text, or one key says a path holds a value and another that it holds keys.
    """
    nested: dict[str, Any] = {}
    for key, value in mapping.items():
        if not isinstance(key, str) or not all(key.split(".")):
            raise ConfigError(f"{where}: keys are names joined by dots, such as gradient.clip.max_norm; got {key!r}")
        *parents, name = key.split(".")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{where}: {key} goes through {parent!r}, which is also given as a single value")
        value = expand(value, where) if isinstance(value, Mapping) else value
        held = target.get(name)
        if name in target and isinstance(held, dict) != isinstance(value, dict):
            raise ConfigError(f"{where}: {key} is given both as a single value and as a table")
        target[name] = _joined(held, value) if isinstance(held, dict) else value
    return nested


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two spellings of one table side by side (no replacing: both were given at once)."""
    joined = dict(first)
    for key, value in second.items():
        joined[key] = _joined(joined[key], value) if isinstance(joined.get(key), dict) and isinstance(value, dict) else value
    return joined


def lay_over(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change` in place of its own; neither is changed."""
    result = dict(base)
    for key, value in change.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            other_kind = KIND in value and value[KIND] != below.get(KIND)
            result[key] = dict(value) if other_kind else lay_over(below, value)
        else:
            result[key] = value
    return result


def leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted path and value, in the mapping's order."""
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def at(mapping: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path.

    Raises:
        KeyError: nothing is there.
    """
    value: Any = mapping
    for key in path.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(path)
        value = value[key]
    return value
