"""What differs, by field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from latent_drift.config import available, compare, compare_saved, describe_differences, load
from latent_drift.config.compare import Difference
from latent_drift.errors import ConfigError
from tests.config.values import overrides


def test_equal_configs_differ_in_nothing() -> None:
    assert compare(load("1.0.0"), load("1.0.0")) == ()
    assert describe_differences(()) == "the values are equal"


def test_a_difference_says_path_before_and_after() -> None:
    (difference,) = compare(load("1.0.0"), load("1.0.0", gradient={"clip": {"max_norm": 0.5}}))
    assert difference == Difference("gradient.clip.max_norm", 1.0, 0.5)
    assert str(difference) == "gradient.clip.max_norm: 1.0 -> 0.5"


def test_fields_of_another_kind_are_in_one_of_them_only() -> None:
    found = compare(load("1.0.0"), load("1.0.0", gradient={"clip": {"kind": "value", "max_value": 2.0}}))
    assert [str(difference) for difference in found] == [
        "gradient.clip.kind: norm -> value",
        "gradient.clip.max_value: (absent) -> 2.0",
        "gradient.clip.max_norm: 1.0 -> (absent)",
        "gradient.clip.norm_type: 2.0 -> (absent)",
    ]


def test_true_is_not_one() -> None:
    assert compare({"a": 1}, {"a": True})
    assert compare({"a": [1]}, {"a": [True]})
    assert not compare({"a": [1, 2.0]}, {"a": (1, 2.0)})


@settings(deadline=None)
@given(overrides(), overrides())
def test_differences_are_symmetric_and_there_exactly_where_the_digests_differ(first: dict[str, Any], second: dict[str, Any]) -> None:
    a, b = load("1.0.0", **first), load("1.0.0", **second)
    there, back = compare(a, b), compare(b, a)
    assert {(d.path, d.before, d.after) for d in there} == {(d.path, d.after, d.before) for d in back}
    assert bool(there) == (a.digest != b.digest)


def test_a_checkpoint_under_another_config_says_so_by_field() -> None:
    saved = load("0.9.0", profile="guard").document()
    assert compare_saved(saved, load("0.9.0", profile="guard")) is None
    text = compare_saved(saved, load("1.0.0", profile="guard"))
    assert text is not None
    assert text.startswith(f"saved under {load('0.9.0', profile='guard').identity}, loaded under {load('1.0.0', profile='guard').identity}; ")
    assert "  precision.float16.exp_max: 20.0 -> 11.0859375" in text.splitlines()


def test_a_checkpoint_of_an_unknown_release_with_the_same_values_says_nothing() -> None:
    saved = {**load("1.0.0").document(), "version": "9.0.0", "sha256": "f" * 64}
    assert compare_saved(saved, load("1.0.0")) is None
    saved["gradient"]["warn_norm"] = 3.0
    assert "gradient.warn_norm: 3.0 -> 100.0" in (compare_saved(saved, load("1.0.0")) or "")


def test_what_is_no_saved_config_is_refused() -> None:
    with pytest.raises(ConfigError):
        compare_saved({"version": "1.0.0", "gradint": {}}, load("1.0.0"))


def test_the_difference_of_the_first_releases_explains_what_was_wrong() -> None:
    """Every value that 0.9.0 marks as wrong differs from 1.0.0, and nothing marked stays."""
    found = {difference.path for difference in compare(load("0.9.0", profile="guard"), load("1.0.0", profile="guard"))}
    notes = available()[0].notes
    for path, note in notes.items():
        if note.startswith("deprecated: "):
            assert any(other == path or other.startswith(f"{path}.") for other in found), path
