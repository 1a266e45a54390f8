"""From sources to one config: order, layers, files, saved configs, and errors that say where."""

from __future__ import annotations

import doctest
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from latent_drift.config import StabilityConfig, active, available, compare, load
from latent_drift.config.catalogue import RELEASES, Catalogue, document_sha256
from latent_drift.config.load import resolve
from latent_drift.config.overlay import at
from latent_drift.config.sources import ENVIRONMENT, Statement
from latent_drift.config.toml_text import to_toml
from latent_drift.errors import ConfigError
from tests.config.values import overrides

PROFILES = ["observe", "guard", "train", "strict"]


def pin_project(directory: Path, table: str) -> None:
    (directory / "pyproject.toml").write_text(table)


# profiles


def test_profiles_differ_as_the_page_says() -> None:
    observe, guard, train, strict = (load("1.0.0", profile=name) for name in PROFILES)
    assert [config.act for config in (observe, guard, train, strict)] == [False, True, True, True]
    assert [config.gradient.clip.kind for config in (observe, guard, train, strict)] == ["none", "none", "norm", "norm"]
    assert [config.repair_raising for config in (observe, guard, train, strict)] == [False, False, True, True]
    assert {path for difference in compare(guard, observe) for path in [difference.path]} == {"act"}
    assert train.gradient.clip.model_dump() == {"kind": "norm", "max_norm": 1.0, "norm_type": 2.0}
    assert strict.exp_bound("float32") < train.exp_bound("float32")
    assert strict.anomaly.action == "raise"
    for config in (guard, train):
        assert (config.gradient.nonfinite, config.gradient.warn_norm, config.gradient.spike_ratio, config.gradient.online_max_norm) == (
            "skip",
            100.0,
            10.0,
            0.5,
        )
        assert config.recovery.rollback is False
        assert config.amp.init_scale == 2.0**10


def test_a_profile_is_resolved_and_leaves_no_overrides() -> None:
    for name in PROFILES:
        config = load("1.0.0", profile=name)
        assert (config.profile, dict(config.overrides)) == (name, {})
        for path, value in config.profiles[name].items():
            assert at(config.values(), path) == value


def test_an_unknown_profile_names_the_known_ones_and_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"no profile 'gaurd'; it has observe, guard, train, strict\. Did you mean 'guard'\?"):
        load("1.0.0", profile="gaurd")
    with pytest.raises(ConfigError, match="expected the name of a profile, got 3"):
        load("1.0.0", profile=3)  # type: ignore[arg-type]


# overrides


def test_nested_overrides_are_merged_and_recorded_by_path() -> None:
    config = load("1.0.0", gradient={"clip": {"max_norm": 0.5}}, amp={"init_scale": 4.0})
    assert config.gradient.clip.model_dump() == {"kind": "norm", "max_norm": 0.5, "norm_type": 2.0}
    assert config.overrides == {"gradient.clip.max_norm": 0.5, "amp.init_scale": 4.0}


def test_a_clip_of_another_kind_replaces_the_whole_clip() -> None:
    config = load("1.0.0", gradient={"clip": {"kind": "value", "max_value": 3.0}})
    assert config.gradient.clip.model_dump() == {"kind": "value", "max_value": 3.0}
    assert config.overrides == {"gradient.clip.kind": "value", "gradient.clip.max_value": 3.0}


def test_a_parameter_that_keeps_its_value_in_another_kind_is_recorded_too() -> None:
    config = load("1.0.0", gradient={"clip": {"kind": "zscore", "threshold": 3.0, "max_norm": 1.0}})
    assert config.overrides["gradient.clip.max_norm"] == load("1.0.0").gradient.clip.max_norm == 1.0  # type: ignore[union-attr]
    assert load("1.0.0", **config.overrides) == config


def test_an_override_that_changes_nothing_is_none() -> None:
    assert load("1.0.0", gradient={"clip": {"kind": "norm", "max_norm": 1.0}}) == load("1.0.0")


def test_overrides_stay_when_the_profile_changes() -> None:
    base = load("1.0.0", profile="train", gradient={"clip": {"max_norm": 0.5}})
    guard = load(base, profile="guard")
    assert guard.gradient.clip.model_dump() == {"kind": "norm", "max_norm": 0.5, "norm_type": 2.0}
    assert load(guard, profile="train") == base


def test_a_config_comes_back_as_itself_and_takes_more() -> None:
    base = load("1.0.0", profile="guard")
    assert load(base) is base
    more = load(base, profile="guard", gradient={"clip": {"kind": "norm", "max_norm": 0.5}})
    assert more.gradient.clip.model_dump() == {"kind": "norm", "max_norm": 0.5, "norm_type": 2.0}
    assert load(more, gradient={"warn_norm": 3.0}).overrides == {**more.overrides, "gradient.warn_norm": 3.0}


@settings(deadline=None)
@given(overrides(), st.sampled_from([release.version for release in available()]), st.sampled_from(PROFILES))
def test_what_is_recorded_as_overridden_gives_the_config_again(changes: dict[str, Any], version: str, profile: str) -> None:
    config = load(version, profile=profile, **changes)
    plain = load(version, profile=profile)
    assert load(version, profile=profile, **config.overrides) == config
    differing = {difference.path for difference in compare(plain, config)}
    assert all(path in differing or f"{path.rpartition('.')[0]}.kind" in differing for path in config.overrides)
    for path, value in config.overrides.items():
        assert at(config.values(), path) == (list(value) if isinstance(value, tuple) else value)
    assert bool(config.overrides) == (config.digest != plain.digest)


@settings(deadline=None)
@given(overrides(), st.sampled_from([release.version for release in available()]), st.sampled_from(PROFILES))
def test_a_saved_config_loads_as_the_same_from_every_form(changes: dict[str, Any], version: str, profile: str) -> None:
    config = load(version, profile=profile, **changes)
    document = config.document()
    for form in (
        document,
        json.loads(json.dumps(document)),
        tomllib.loads(to_toml(document)),
        config.model_dump(),
        json.loads(config.model_dump_json()),
    ):
        assert load(form) == config
    assert load(document).digest == config.digest
    assert load(config.record()) == load(json.loads(json.dumps(config.record()))) == config


@settings(deadline=None)
@given(overrides(), overrides())
def test_later_overrides_win_over_earlier_ones(first: dict[str, Any], second: dict[str, Any]) -> None:
    try:
        both = load(load("1.0.0", **first), **second)
    except ConfigError:  # two leaves that only fit each other (amp's floor and start) were split between the layers
        assert {"amp.init_scale", "amp.min_scale"} & (first.keys() | second.keys())
        return
    alone = load("1.0.0", **second)
    for path in second:
        if path != "gradient.clip":
            assert at(both.values(), path) == at(alone.values(), path)
    if "gradient.clip" in second:
        assert both.gradient.clip.kind == second["gradient.clip"]["kind"]


def test_sections_of_another_config_are_overrides_too() -> None:
    other = load("0.9.0", gradient={"clip": {"kind": "value", "max_value": 2.0}})
    config = load("1.0.0", gradient=other.gradient, latent={"bound": "clamp"}, exp=other.exp)
    assert (config.gradient, config.exp) == (other.gradient, other.exp)
    assert load("1.0.0", gradient={"clip": other.gradient.clip}).gradient.clip == other.gradient.clip


@pytest.mark.parametrize("name", ["version", "title", "sha256", "schema_version", "released", "profiles", "overrides"])
def test_identity_is_no_value_to_override(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: says what a config is"):
        load("1.0.0", **{name: "x"})


# sources in order


def test_the_later_source_wins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().version == "1.0.0"
    pin_project(project, '[tool.latent-drift]\nstability = "0.9.0"\n')
    assert load().version == "0.9.0"
    monkeypatch.setenv(ENVIRONMENT, "~=1.0")
    assert load().version == "1.0.0"
    assert load("<1").version == "0.9.0"
    monkeypatch.setenv(ENVIRONMENT, "  ")
    assert load().version == "0.9.0"


def test_arguments_without_a_pin_add_to_what_the_project_says(project: Path) -> None:
    pin_project(project, '[tool.latent-drift]\nstability = "0.9.0"\nprofile = "guard"\n')
    config = load(gradient={"warn_norm": 5.0})
    assert (config.version, config.profile, dict(config.overrides)) == ("0.9.0", "guard", {"gradient.warn_norm": 5.0})
    assert load(profile="strict").profile == "strict"
    assert load({"gradient": {"warn_norm": 5.0}}) == config


def test_a_pin_puts_aside_everything_said_before(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin_project(
        project, '[tool.latent-drift.stability]\nversion = "0.9.0"\nprofile = "guard"\n[tool.latent-drift.stability.gradient]\nwarn_norm = 5.0\n'
    )
    assert load().overrides == {"gradient.warn_norm": 5.0}
    assert load("1.0.0") == load(load("1.0.0"))
    assert load("1.0.0").profile == "train"
    monkeypatch.setenv(ENVIRONMENT, "1.0.0")
    assert load().overrides == {}


def test_the_first_pyproject_met_walking_up_is_the_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    pin_project(project, '[tool.latent-drift]\nstability = "0.9.0"\n')
    monkeypatch.chdir(inner)
    assert load().version == "0.9.0"
    pin_project(project / "a", "[project]\nname = 'x'\n")
    assert load().version == "1.0.0"


def test_a_path_in_pyproject_is_relative_to_it_and_one_in_the_environment_to_the_working_directory(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = project / "inner"
    inner.mkdir()
    (project / "pin.toml").write_text('version = "0.9.0"\n')
    (inner / "pin.toml").write_text('version = "1.0.0"\nprofile = "strict"\n')
    pin_project(project, '[tool.latent-drift]\nstability = "pin.toml"\n')
    monkeypatch.chdir(inner)
    assert load().version == "0.9.0"
    monkeypatch.setenv(ENVIRONMENT, "pin.toml")
    assert load().profile == "strict"


def test_a_broken_source_matters_only_where_it_counts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin_project(project, "this is no toml")
    monkeypatch.setenv(ENVIRONMENT, ">=99")
    assert load("1.0.0").version == "1.0.0"
    with pytest.raises(ConfigError, match=f"^{ENVIRONMENT}: no stability config satisfies '>=99'"):
        load()
    monkeypatch.delenv(ENVIRONMENT)
    with pytest.raises(ConfigError, match=r"pyproject\.toml: cannot be read"):
        load()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[tool.latent-drift]\nstabilty = "1.0.0"\n', r"pyproject\.toml \[tool\.latent-drift\]: stabilty: unknown key; closest known: stability"),
        ("[tool.latent-drift]\nstability = 1.0\n", r"stability: expected a pin such as \"~=1\.0\", a path or a table, got 1\.0"),
        ("[tool.latent-drift]\nprofile = 3\n", "profile: expected the name of a profile, got 3"),
        ("[tool]\nlatent-drift = 3\n", "expected a table, got 3"),
        ("[tool.latent_drift]\n", r"the table \[tool\.latent_drift\] is spelled \[tool\.latent-drift\]"),
        (
            '[tool.latent-drift.stability]\nversion = "1.0.0"\ngradint = 3\n',
            r"\[tool\.latent-drift\.stability\]: gradint: unknown key; closest known: gradient",
        ),
        ("[tool.latent-drift.stability.gradient]\nwarn_norm = nan\n", r"gradient\.warn_norm: should be a finite number; got nan"),
        ('[tool.latent-drift]\nstability = "gone.toml"\n', r"there is no config file .*gone\.toml"),
    ],
)
def test_mistakes_in_pyproject_are_refused_by_place(project: Path, table: str, message: str) -> None:
    pin_project(project, table)
    with pytest.raises(ConfigError, match=message):
        load()


def test_tables_of_the_tools_beside_it_are_left_to_them(project: Path) -> None:
    pin_project(project, '[tool.latent-drift.patches]\nselect = ["NS1"]\n')
    assert load().version == "1.0.0"


# files and mappings


def test_a_file_is_a_pin_with_overrides(project: Path) -> None:
    (project / "stability.toml").write_text(
        'schema_version = 1\nversion = "~=1.0"\nprofile = "guard"\n[gradient.clip]\nkind = "norm"\nmax_norm = 0.5\n'
    )
    (project / "stability.json").write_text(
        json.dumps({"$schema": "x", "version": "~=1.0", "profile": "guard", "gradient": {"clip": {"kind": "norm", "max_norm": 0.5}}})
    )
    from_toml = load("stability.toml")
    assert (
        from_toml
        == load(project / "stability.toml")
        == load("stability.json")
        == load("1.0.0", profile="guard", gradient={"clip": {"kind": "norm", "max_norm": 0.5}})
    )
    assert load("stability.toml", profile="train", amp={"init_scale": 2.0}).overrides == {"gradient.clip.max_norm": 0.5, "amp.init_scale": 2.0}


def test_integers_in_a_file_are_numbers(project: Path) -> None:
    (project / "s.toml").write_text('version = "1.0.0"\n[gradient]\nwarn_norm = 50\n')
    warn_norm = load("s.toml").gradient.warn_norm
    assert (warn_norm, type(warn_norm)) == (50.0, float)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.toml", "[overrides]\nwarn_norm = 3.0\n", r"s\.toml: version: missing"),
        ("s.json", "{}", r"s\.json: says nothing"),
        ("s.toml", 'verison = "~=1.0"\n', r"s\.toml: verison: unknown key"),
        ("s.toml", 'version = "1.0.0"\n[gradient]\nwarn_norm = nan\n', r"s\.toml: gradient\.warn_norm: should be a finite number; got nan"),
        ("s.json", '{"version": "1.0.0", "gradient": {"warn_norm": Infinity}}', r"s\.json: gradient\.warn_norm: should be a finite number; got inf"),
        ("s.json", '{"version": "1.0.0", "gradient": {"warn_norm": 1e999}}', r"gradient\.warn_norm: should be a finite number"),
        ("s.json", '{"version": "1.0.0", "gradient": {"warn_nrm": 1.0}}', r"gradient\.warn_nrm: unknown key; closest known: gradient\.warn_norm"),
        ("s.json", '{"version": "1.0.0", "version": "0.9.0"}', "the key 'version' is given twice"),
        ("s.toml", 'version = "1.0.0"\nversion = "0.9.0"\n', r"s\.toml: cannot be read as a config"),
        ("s.json", "[1]", r"s\.json: expected an object with the sections of a config, got list"),
        ("s.json", '{"version": 1.0}', r"version: expected text, got 1\.0"),
        ("s.json", '{"version": "1.0.0", "profile": 1}', "profile: expected text, got 1"),
        ("s.json", '{"schema_version": 2, "version": "1.0.0"}', r"schema_version: 2 is newer than this installation understands \(1\)"),
        ("s.json", '{"schema_version": "1", "version": "1.0.0"}', "schema_version: expected a whole number, got '1'"),
        ("s.json", '{"schema_version": -1, "version": "1.0.0"}', "there has never been a schema -1"),
        ("s.json", "\ufeff{}", r"s\.json: cannot be read as a config"),
        ("s.json", "[" * 100_000, r"s\.json: cannot be read as a config"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_place(project: Path, name: str, text: str, message: str) -> None:
    (project / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(name)


@pytest.mark.parametrize(("name", "text"), [("s.toml", "[gradient]\nwarn_norm = 3.0\n"), ("s.json", '{"gradient": {"warn_norm": 3.0}}')])
def test_a_file_that_names_no_release_overrides_the_one_beneath(project: Path, name: str, text: str) -> None:
    (project / name).write_text(text)
    assert load(name) == load(gradient={"warn_norm": 3.0})
    pin_project(project, '[tool.latent-drift]\nstability = "0.9.0"\n')
    assert load(name) == load("0.9.0", gradient={"warn_norm": 3.0})


@pytest.mark.parametrize(
    ("kind", "value"), [("adaptive_percentile", ("percentile", 95.0)), ("zscore", ("threshold", 3.0)), ("agc", ("clipping", 0.01))]
)
def test_a_clip_by_history_or_ratio_has_a_usual_value(kind: str, value: tuple[str, float]) -> None:
    config = load("1.0.0", gradient={"clip": {"kind": kind}})
    assert getattr(config.gradient.clip, value[0]) == value[1]
    assert load(config.document()) == config


def test_a_file_that_is_not_there_or_no_text_is_refused_by_name(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no config file gone\.toml"):
        load("gone.toml")
    (project / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml: cannot be read"):
        load("binary.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(project)


@pytest.mark.parametrize("source", [3, 1.0, ["1.0.0"], b"1.0.0", object()])
def test_what_names_no_config_is_refused_by_type(source: Any) -> None:
    with pytest.raises(ConfigError, match=f"got {type(source).__name__}"):
        load(source)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match="3 problems") as caught:
        load("1.0.0", gradient={"warn_norm": -1.0, "clip": {"max_nrm": 1.0}}, amp={"growth_interval": 1.5})
    for path in ("gradient.warn_norm", "gradient.clip.max_nrm", "amp.growth_interval"):
        assert f"  {path}: " in str(caught.value)
    assert isinstance(caught.value.__cause__, ValidationError)


def test_the_layer_to_blame_is_named(project: Path) -> None:
    pin_project(project, "[tool.latent-drift.stability.gradient]\nwarn_norm = -1.0\n")
    with pytest.raises(ConfigError, match=r"\[tool\.latent-drift\.stability\]: gradient\.warn_norm"):
        load(profile="guard", amp={"init_scale": 2.0})


def test_a_record_without_a_version_or_with_overrides_that_are_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="version: missing"):
        load({"overrides": {"gradient.warn_norm": 1.0}})
    with pytest.raises(ConfigError, match="overrides: expected a table of dotted paths and values, got 3"):
        load({"version": "1.0.0", "overrides": 3})


def test_a_path_may_start_at_home(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pin.toml").write_text('version = "0.9.0"\n')
    monkeypatch.setenv("HOME", str(project))
    assert load("~/pin.toml").version == "0.9.0"


def test_the_examples_of_load_are_true() -> None:
    module = sys.modules["latent_drift.config.load"]
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


def test_a_pin_with_a_hash_holds_or_fails(project: Path) -> None:
    config = load("1.0.0")
    assert load({"version": "1.0.0", "sha256": config.sha256}) == config
    with pytest.raises(ConfigError, match=f"sha256: expected {'0' * 64}, but the installed config 1.0.0 .* has {config.sha256}"):
        load({"version": "1.0.0", "sha256": "0" * 64})


# saved configs


@pytest.mark.parametrize("name", ["version", "schema_version", "title", "sha256", "profile", "gradient", "amp"])
def test_a_saved_config_that_lost_a_part_is_refused_by_name(name: str) -> None:
    document = load("1.0.0").document()
    del document[name]
    with pytest.raises(ConfigError, match=f"{name}: missing"):
        load(document)


def test_values_edited_in_a_saved_config_become_overrides() -> None:
    document = load("1.0.0").document()
    document["gradient"]["warn_norm"] = 12.0
    config = load(document)
    assert config.overrides == {"gradient.warn_norm": 12.0}
    assert "overrides=1" in config.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "banana"}, "version: should be a PEP 440 version; got 'banana'"),
        ({"released": "soon"}, "released: expected a date such as 2026-11-22, got 'soon'"),
        ({"sha256": "x"}, "sha256: string should match pattern"),
        ({"profile": "mine"}, "profile 'mine' is none of its profiles, observe, guard, train, strict"),
        ({"title": 3}, "title: should be a valid string; got 3"),
        ({"overrides": 3}, "overrides: should be a table of values"),
    ],
)
def test_a_saved_config_with_a_wrong_identity_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load({**load("1.0.0").document(), **changes})


def foreign(**changes: Any) -> dict[str, Any]:
    """A saved config of a release that is not installed."""
    return {**load("1.0.0", profile="guard").document(), "version": "7.1.0", "sha256": "a" * 64, "released": "2031-01-01", **changes}


def test_a_saved_config_of_an_unknown_release_keeps_its_values() -> None:
    config = load(foreign())
    assert (config.version, config.sha256, config.profile, config.draft) == ("7.1.0", "a" * 64, "guard", False)
    assert config.values() == load("1.0.0", profile="guard").values()
    more = load(config, gradient={"warn_norm": 4.0})
    assert more.overrides == {"gradient.warn_norm": 4.0}
    assert load(more.document()) == more


def test_the_profile_of_an_unknown_release_cannot_be_changed() -> None:
    with pytest.raises(ConfigError, match=r"release 7\.1\.0 is not installed.*cannot be changed from 'guard'"):
        load(foreign(), profile="train")


def test_a_config_saved_under_an_earlier_state_of_a_draft_still_loads() -> None:
    document = load("1.0.0", profile="guard").document()
    document["sha256"], document["released"] = "b" * 64, None
    document["gradient"]["warn_norm"] = 77.0
    config = load(document)
    assert (config.sha256, config.gradient.warn_norm, config.draft) == ("b" * 64, 77.0, True)


def test_a_saved_config_with_another_hash_of_a_dated_release_is_refused(tmp_path: Path) -> None:
    release = json.loads((RELEASES / "1.0.0.json").read_text()) | {"released": "2027-01-01"}
    release["sha256"] = document_sha256(release)
    (tmp_path / "1.0.0.json").write_text(json.dumps(release))
    saved = {**load("1.0.0").document(), "released": "2027-01-01", "sha256": "c" * 64}
    with pytest.raises(ConfigError, match=f"expected {'c' * 64}, but the installed config 1.0.0 .2027-01-01. has {release['sha256']}"):
        resolve([Statement("checkpoint", saved=saved)], Catalogue(tmp_path))


def test_a_release_file_of_ones_own_loads_and_is_verified(project: Path) -> None:
    release = json.loads((RELEASES / "1.0.0.json").read_text()) | {"version": "2026.1+acme", "title": "Ours"}
    release["gradient"]["warn_norm"] = 42.0
    (project / "acme.json").write_text(json.dumps(release))
    with pytest.raises(ConfigError, match=r"acme\.json: config 2026\.1\+acme was changed after it was made"):
        load("acme.json")
    release["sha256"] = document_sha256(release)
    (project / "acme.json").write_text(json.dumps(release))
    config = load("acme.json", profile="guard")
    assert (config.version, config.gradient.warn_norm, config.profile, dict(config.overrides)) == ("2026.1+acme", 42.0, "guard", {})


def test_a_saved_config_survives_a_checkpoint_that_takes_plain_data_only(project: Path) -> None:
    import torch

    config = load("1.0.0", gradient={"clip": {"max_norm": 0.5}}, anomaly={"allow": ["a.py:1"]})
    torch.save({"config": config.document()}, project / "checkpoint.pt")
    assert load(torch.load(project / "checkpoint.pt", weights_only=True)["config"]) == config


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    import numpy as np

    value = load("1.0.0", gradient={"warn_norm": np.float64(3.0)}).document()["gradient"]["warn_norm"]
    assert (value, type(value)) == (3.0, float)


def test_without_a_working_directory_there_is_no_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load().version == active().version == "1.0.0"
    with pytest.raises(ConfigError, match=r"there is no config file x\.toml"):
        load("x.toml")


def test_two_loads_of_a_pin_are_the_same_config() -> None:
    first, second = load("1.0.0"), load("1.0.0")
    assert first == second
    assert first.document() == second.document()
    assert isinstance(first, StabilityConfig)
