"""TOML text that the standard library reads back as the same data."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_drift.config.toml_text import to_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans(), TEXT)
VALUES = st.one_of(SCALARS, st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=3))
TABLES = st.recursive(
    st.dictionaries(TEXT, VALUES, max_size=3), lambda inner: st.dictionaries(TEXT, st.one_of(VALUES, inner), max_size=3), max_leaves=15
)


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, all the way down (1 is not 1.0, 0.0 is not -0.0)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@settings(deadline=None)
@given(TABLES)
def test_what_is_written_is_read_back(document: dict[str, Any]) -> None:
    assert same(tomllib.loads(to_toml(document)), document)


def test_a_key_without_a_value_is_left_out() -> None:
    assert to_toml({"a": None, "b": {"c": None, "d": 1}}) == "[b]\nd = 1\n"


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="no TOML for complex"):
        to_toml({"a": 1j})
