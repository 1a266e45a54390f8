"""Where each value came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_drift.config import explain, load
from latent_drift.config.overlay import leaves
from latent_drift.config.sources import ENVIRONMENT
from latent_drift.errors import ConfigError
from tests.config.values import overrides


def test_each_value_names_the_source_that_gave_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pyproject.toml").write_text('[tool.latent-drift.stability]\nversion = "1.0.0"\n[tool.latent-drift.stability.amp]\ninit_scale = 8.0\n')
    explanation = explain(profile="train", gradient={"warn_norm": 5.0, "clip": {"max_norm": 0.5}})
    assert explanation["amp.init_scale"].source == f"{project / 'pyproject.toml'} [tool.latent-drift.stability]"
    assert explanation["gradient.warn_norm"].source == "argument"
    assert explanation["gradient.clip.max_norm"].source == "argument"
    assert explanation["gradient.clip.kind"].source == "release 1.0.0, profile train (argument)"
    assert explanation["gradient.spike_ratio"].source == "release 1.0.0"


def test_an_environment_variable_is_a_source_of_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pin.toml").write_text('version = "1.0.0"\n[gradient]\nwarn_norm = 5.0\n')
    monkeypatch.setenv(ENVIRONMENT, "pin.toml")
    assert explain()["gradient.warn_norm"].source == f"{ENVIRONMENT}: pin.toml"


def test_all_sources_are_listed_in_order_with_what_they_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pyproject.toml").write_text('[tool.latent-drift]\nstability = "0.9.0"\n')
    monkeypatch.setenv(ENVIRONMENT, "~=1.0")
    consulted = explain(profile="guard").consulted
    assert [(source.source, source.said, source.counted) for source in consulted] == [
        ("package default", "the newest release", False),
        (f"{project / 'pyproject.toml'} [tool.latent-drift]", "stability '0.9.0'", False),
        (ENVIRONMENT, "stability '~=1.0'", True),
        ("argument", "profile 'guard'", True),
    ]


def test_with_no_sources_the_package_default_counts() -> None:
    explanation = explain()
    assert [source.counted for source in explanation.consulted] == [True, True, True, True]
    assert [source.said for source in explanation.consulted] == ["the newest release", "nothing", "nothing", "nothing"]
    assert explanation.config == load()


def test_a_broken_source_that_is_overruled_is_listed_as_broken(project: Path) -> None:
    (project / "pyproject.toml").write_text("no toml")
    broken = explain("1.0.0").consulted[1]
    assert not broken.counted
    assert "broken: " in broken.said
    with pytest.raises(ConfigError, match="cannot be read"):
        explain(profile="guard")


def test_notes_of_the_release_stand_beside_its_own_values_only() -> None:
    assert "deprecated: " in str(explain("0.9.0")["precision.float16.division_eps"])
    own = explain("0.9.0", precision={"float16": {"division_eps": 1e-3}})["precision.float16.division_eps"]
    assert (own.note, own.source) == (None, "argument")
    assert "deprecated: " in (explain("0.9.0")["log.gradient"].note or "")  # the note is on the section


@settings(deadline=None)
@given(overrides(), st.sampled_from(["observe", "guard", "train", "strict"]))
def test_every_value_is_explained_and_every_override_by_its_argument(changes: dict[str, Any], profile: str) -> None:
    explanation = explain("1.0.0", profile=profile, **changes)
    config = load("1.0.0", profile=profile, **changes)
    assert explanation.config == config
    assert {path: origin.value for path, origin in explanation.origins.items()} == dict(leaves(config.values()))
    for path in config.overrides:
        assert explanation[path].source in {"argument", "schema default"}
    plain = load("1.0.0", profile=profile).values()
    for path, origin in explanation.origins.items():
        if origin.source.startswith("release"):
            assert dict(leaves(plain))[path] == origin.value


def test_a_value_that_nobody_gave_is_the_schemas() -> None:
    assert explain("1.0.0", gradient={"clip": {"kind": "agc", "clipping": 0.01}})["gradient.clip.eps"].source == "schema default"


def test_a_config_explains_what_was_overridden_in_it() -> None:
    explanation = explain(load("1.0.0", profile="guard", gradient={"warn_norm": 5.0}))
    assert explanation["gradient.warn_norm"].source == "argument"
    assert explanation["gradient.spike_ratio"].source == "release 1.0.0"


def test_a_part_can_be_asked_for_and_a_wrong_part_is_refused() -> None:
    assert set(explain("1.0.0").only(["gradient.clip", "act"]).origins) == {
        "gradient.clip.kind",
        "gradient.clip.max_norm",
        "gradient.clip.norm_type",
        "act",
    }
    with pytest.raises(ConfigError, match=r"gradient\.clp: unknown key; closest known: gradient\.clip"):
        explain("1.0.0").only(["gradient.clp"])


def test_the_text_has_a_line_for_every_source_and_value() -> None:
    explanation = explain("1.0.0")
    lines = str(explanation).splitlines()
    assert lines[0] == explanation.config.identity
    assert len(lines) == 1 + len(explanation.consulted) + len(explanation.origins)
