"""Laying values over values: properties for any nested data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_drift.config.overlay import at, expand, lay_over, leaves
from latent_drift.errors import ConfigError

NAMES = st.text("abcde_", min_size=1, max_size=3)
SCALARS = st.one_of(st.integers(), st.booleans(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
NESTED = st.recursive(
    st.dictionaries(NAMES, SCALARS, max_size=3), lambda inner: st.dictionaries(NAMES, st.one_of(SCALARS, inner), max_size=3), max_leaves=12
)


@settings(deadline=None)
@given(NESTED, NESTED)
def test_every_leaf_of_the_change_is_in_the_result_and_neither_is_changed(base: dict[str, Any], change: dict[str, Any]) -> None:
    before = copy.deepcopy((base, change))
    result = lay_over(base, change)
    for path, value in leaves(change):
        if value != {}:  # an empty table changes nothing
            assert at(result, path) == value
    assert (base, change) == before


@settings(deadline=None)
@given(NESTED, NESTED)
def test_laying_over_twice_is_laying_over_once(base: dict[str, Any], change: dict[str, Any]) -> None:
    once = lay_over(base, change)
    assert lay_over(once, change) == once


@settings(deadline=None)
@given(NESTED)
def test_nothing_over_something_and_something_over_nothing(mapping: dict[str, Any]) -> None:
    assert lay_over(mapping, {}) == mapping
    assert lay_over({}, mapping) == mapping


@settings(deadline=None)
@given(NESTED)
def test_expanding_leaves_gives_the_nested_form_back(mapping: dict[str, Any]) -> None:
    assert expand(dict(leaves(mapping))) == mapping


def test_another_kind_replaces_the_whole_and_the_same_kind_is_merged() -> None:
    base = {"clip": {"kind": "norm", "max_norm": 1.0, "norm_type": 2.0}}
    assert lay_over(base, {"clip": {"kind": "value", "max_value": 3.0}}) == {"clip": {"kind": "value", "max_value": 3.0}}
    assert lay_over(base, {"clip": {"kind": "norm", "max_norm": 0.5}}) == {"clip": {"kind": "norm", "max_norm": 0.5, "norm_type": 2.0}}
    assert lay_over(base, {"clip": {"max_norm": 0.5}}) == {"clip": {"kind": "norm", "max_norm": 0.5, "norm_type": 2.0}}


def test_the_order_of_dotted_keys_does_not_matter() -> None:
    first = expand({"a.b": 1, "a": {"c": 2}, "a.d.e": 3})
    assert first == expand({"a.d.e": 3, "a": {"c": 2}, "a.b": 1}) == {"a": {"b": 1, "c": 2, "d": {"e": 3}}}


@pytest.mark.parametrize(
    "mapping", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a": {"b": 1}, "a.b.c": 2}, {"a..b": 1}, {".a": 1}, {"": 1}, {3: 1}, {"a": {None: 1}}]
)
def test_contradictory_and_malformed_paths_are_refused(mapping: dict[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="overrides"):
        expand(mapping)


@pytest.mark.parametrize("path", ["x", "a.x", "a.b.x"])
def test_a_path_that_leads_nowhere_is_a_key_error(path: str) -> None:
    with pytest.raises(KeyError):
        at({"a": {"b": 1}}, path)
