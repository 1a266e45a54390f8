"""FrozenMapping: read-only, hashable, picklable."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_drift.config.frozen import FrozenMapping, freeze, thaw

PLAIN = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text(max_size=3), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=4))
def test_freezing_is_undone_by_thawing_and_gives_a_value(plain: dict[str, Any]) -> None:
    frozen = FrozenMapping(plain)
    assert thaw(frozen) == plain
    assert json.loads(json.dumps(thaw(frozen))) == plain
    for twin in (FrozenMapping(plain), pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen), copy.copy(frozen), eval(repr(frozen))):
        assert twin == frozen
        assert hash(twin) == hash(frozen)


def test_later_changes_of_what_it_was_made_from_do_not_reach_it() -> None:
    source: dict[str, Any] = {"a": {"b": [1, 2]}}
    frozen = FrozenMapping(source)
    source["a"]["b"].append(3)
    source["c"] = 1
    assert frozen == {"a": FrozenMapping({"b": (1, 2)})}


def test_nothing_about_it_can_be_set() -> None:
    frozen = FrozenMapping({"a": 1})
    with pytest.raises(AttributeError, match="cannot be changed"):
        frozen.a = 2
    with pytest.raises(TypeError):
        frozen["a"] = 2  # type: ignore[index]
    with pytest.raises(TypeError):
        del frozen["a"]  # type: ignore[attr-defined]


def test_freeze_keeps_what_is_frozen() -> None:
    frozen = FrozenMapping({"a": 1})
    assert freeze(frozen) is frozen
    assert freeze([frozen, {"b": [1]}]) == (frozen, FrozenMapping({"b": (1,)}))
