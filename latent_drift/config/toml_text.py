"""TOML text of plain nested data (the standard library reads TOML and does not write it)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def to_toml(document: Mapping[str, Any]) -> str:
    """TOML that `tomllib` reads back as the same data, except that keys whose value is None are left out (TOML has no null).

    Takes str, bool, int, finite or infinite float, lists of these, and mappings of these.

    Raises:
        TypeError: a value of another type.
    """
    return "\n".join(_table(document, ())).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and value is not None}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    if path and (plain or not tables):
        yield f"\n[{'.'.join(_key(key) for key in path)}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in tables.items():
        yield from _table(value, (*path, key))


def _key(key: str) -> str:
    return key if key and set(key) <= _BARE else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value)
        return text if any(sign in text for sign in ".en") else f"{text}.0"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(element) for element in value)}]"
    raise TypeError(f"no TOML for {type(value).__name__} {value!r}")


def _text(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, except that TOML also wants DEL escaped and takes no surrogates."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
