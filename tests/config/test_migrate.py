"""Old documents load for ever: one file per schema version in the fixtures."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import latent_drift.config
from latent_drift.config import SCHEMA_VERSION, load
from latent_drift.config.migrate import MIGRATIONS, migrate
from latent_drift.config.sources import read_document
from latent_drift.config.v0 import DROPPED, PATHS
from latent_drift.errors import ConfigError

FIXTURES = Path(__file__).parent / "fixtures"


def schema_versions() -> list[int]:
    """Every schema version that has a module: v0.py, v1.py, ..."""
    modules = Path(latent_drift.config.__file__).parent.glob("v*.py")
    return sorted(int(found[1]) for path in modules if (found := re.fullmatch(r"v(\d+)", path.stem)))


def test_the_schema_modules_are_the_migrations_and_the_current_one() -> None:
    assert schema_versions() == [*sorted(MIGRATIONS), SCHEMA_VERSION] == list(range(SCHEMA_VERSION + 1))


@pytest.mark.parametrize("version", schema_versions())
def test_every_schema_version_has_a_fixture_that_loads(version: int) -> None:
    path = FIXTURES / f"schema_{version}.json"
    assert path.exists(), f"schema {version} has no fixture: save a config of it as {path} and never change it again"
    document = read_document(path)
    assert document["schema_version"] == version
    migrated = migrate(document)
    assert migrated["schema_version"] == SCHEMA_VERSION
    assert load(path) == load(migrated)
    assert migrate(migrated) == migrated


def test_the_fixture_of_schema_1_keeps_its_values() -> None:
    saved = json.loads((FIXTURES / "schema_1.json").read_text())
    config = load(FIXTURES / "schema_1.json")
    assert (config.version, config.profile, config.sha256) == (saved["version"], saved["profile"], saved["sha256"])
    for section, values in saved.items():
        if isinstance(values, dict) and section not in {"profiles", "overrides"}:
            assert _contains(config.values()[section], values), section


def _contains(whole: Any, part: Any) -> bool:
    """Whether `part`'s values are in `whole`, which may have gained fields since."""
    if isinstance(part, dict):
        return all(key in whole and _contains(whole[key], value) for key, value in part.items())
    return bool(whole == part)


def test_migrating_is_pure() -> None:
    document = read_document(FIXTURES / "schema_0.json")
    before = copy.deepcopy(document)
    assert migrate(document) == migrate(document)
    assert document == before


def test_steps_are_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        MIGRATIONS, -1, lambda document: {**document, "schema_version": 0, "EPS_FLOAT16": document["EPS_HALF"] * 2} | {"EPS_HALF": None}
    )
    monkeypatch.setitem(MIGRATIONS, 0, lambda document: {"schema_version": 1, "eps": document["EPS_FLOAT16"]})
    assert migrate({"schema_version": -1, "EPS_HALF": 2.0}) == {"schema_version": 1, "eps": 4.0}


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, r"2 is newer than this installation understands \(1\)\. Upgrade"),
        (-1, "there has never been a schema -1; known: 0, 1"),
        (True, "whole number, got True"),
        (1.0, r"got 1\.0"),
        (None, "missing"),
    ],
)
def test_unknown_schema_versions_are_refused(version: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"schema_version: .*{message}"):
        migrate({"schema_version": version, "version": "1.0.0"})


def test_the_published_constants_are_config_0_9_0() -> None:
    """The document with every constant as it was published; float16's epsilon is the utilities', which differs from the report's."""
    config = load(FIXTURES / "schema_0.json")
    assert config.version == "0.9.0"
    assert config.overrides == {"precision.float16.division_eps": 1e-4, "precision.bfloat16.division_eps": 1e-4}


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(PATHS)), st.floats(0.5, 50.0)))
def test_every_constant_of_schema_0_arrives_where_it_belongs(constants: dict[str, float]) -> None:
    document = {name: -value if name in {"LOG_MIN", "LOGVAR_MIN", "ATTENTION_MASK_VALUE"} else value for name, value in constants.items()}
    config = load({"schema_version": 0, **document, **dict.fromkeys(DROPPED, 1.0)})
    for name, value in document.items():
        for path in PATHS[name]:
            here: Any = config
            for part in path.split("."):
                here = getattr(here, part)
            assert here == value, path


def test_an_editors_key_is_no_constant() -> None:
    assert load({"schema_version": 0, "$schema": "x", "LOG_MAX": 9.0}).exp.bound == 9.0


def test_a_constant_that_never_was_is_refused_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="schema 0: EPS_FLOAT61: unknown key; closest known: EPS_FLOAT16"):
        load({"schema_version": 0, "EPS_FLOAT61": 1.0})
