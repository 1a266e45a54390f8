"""The JSON Schema for editors, held against load by a validator that is not ours."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_drift.config import available, load
from latent_drift.config.overlay import expand
from latent_drift.config.schema import json_schema
from latent_drift.config.toml_text import to_toml
from latent_drift.errors import ConfigError
from tests.config.values import LEAVES, NUMBERS, Leaf, overrides

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def problems(document: Any) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(document)]


def test_it_is_a_schema_and_plain_json() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    text = json.dumps(json_schema(), allow_nan=False)
    assert json.loads(text) == json_schema()
    assert '"default"' not in text  # what is left out is the release's, whatever the schema would put there


@pytest.mark.parametrize("profile", ["observe", "guard", "train", "strict"])
@pytest.mark.parametrize("version", [release.version for release in available()])
def test_every_saved_config_is_valid_as_json_and_as_toml(version: str, profile: str) -> None:
    document = load(version, profile=profile).document()
    assert problems(document) == []
    assert problems(tomllib.loads(to_toml(document))) == []


@settings(deadline=None)
@given(overrides(), st.sampled_from([None, "guard", "strict"]))
def test_every_file_of_a_pin_and_overrides_that_loads_is_valid(changes: dict[str, Any], profile: str | None) -> None:
    document = {"$schema": "stability.schema.json", "version": "~=1.0", **({} if profile is None else {"profile": profile}), **expand(changes)}
    assert load(document).version == "1.0.0"
    assert problems(document) == []


@settings(deadline=None)
@given(
    st.sampled_from(LEAVES),
    st.one_of(st.booleans(), st.integers(-3, 3), st.floats(-3, 3), st.text(max_size=3), st.none(), st.lists(st.integers(), max_size=1)),
)
def test_a_value_is_valid_where_it_loads_and_only_there(leaf: Leaf, value: Any) -> None:
    document = {"version": "1.0.0", **expand({leaf.path: value})}
    try:
        load(document)
        loads = True
    except ConfigError:
        loads = False
    is_whole = isinstance(value, float) and value.is_integer() and leaf.info.annotation is int  # JSON Schema calls 2.0 an integer
    ties_two_fields = leaf.path in {"amp.init_scale", "amp.min_scale"}  # the floor may not exceed the start: beyond JSON Schema
    if not is_whole and not ties_two_fields:
        assert (problems(document) == []) == loads


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"version": "1.0.0", "gradint": {}},
        {"version": "1.0.0", "profile": "gaurd"},
        {"version": "1.0.0", "gradient": {"clip": {"kind": "nrm"}}},
        {"version": "1.0.0", "gradient": {"clip": {"kind": "value", "max_norm": 1.0}}},
        {"version": "1.0.0", "precision": {"float8": {}}},
        {"version": 1.0},
        {"schema_version": 2, "version": "1.0.0"},
    ],
)
def test_mistakes_are_found_by_the_editor_and_by_load(document: dict[str, Any], project: Any) -> None:
    assert problems(document) != []
    if "version" in document:  # a mapping in memory may leave the version out, a file may not
        with pytest.raises(ConfigError):
            load(document)


@pytest.mark.parametrize("clip", [{"kind": "norm", "max_norm": 0.5}, {"max_norm": 0.5}, {"kind": "agc", "clipping": 0.01}, {"kind": "none"}])
def test_a_clip_may_leave_out_what_the_release_gives(clip: dict[str, Any]) -> None:
    document = {"version": "1.0.0", "gradient": {"clip": clip}}
    assert problems(document) == []
    assert load(document).version == "1.0.0"


def test_every_number_has_a_description_or_speaks_for_itself() -> None:
    definitions = json_schema()["$defs"]
    described = {name for definition in definitions.values() for name, entry in definition["properties"].items() if "description" in entry}
    for leaf in NUMBERS:
        name = leaf.path.rpartition(".")[2]
        assert name in described or name in {
            "growth_factor",
            "backoff_factor",
            "growth_interval",
            "init_scale",
            "log_std_min",
            "log_std_max",
            "scale_min",
            "scale_max",
        }, leaf.path
