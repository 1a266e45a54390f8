"""stability.lock: what was promised, and whether it is still given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from latent_drift.config import load
from latent_drift.config.catalogue import RELEASES, Catalogue, document_sha256
from latent_drift.config.lock import Lock, check_lock, read_lock, torch_version
from latent_drift.errors import ConfigError
from tests.config.values import overrides


@pytest.fixture
def lock() -> Lock:
    return Lock.of(load("1.0.0", profile="guard", gradient={"warn_norm": 5.0}))


def test_a_lock_says_version_hash_profile_overrides_and_torch(lock: Lock) -> None:
    import torch

    document = lock.document()
    assert document["version"] == "1.0.0"
    assert document["sha256"] == load("1.0.0").sha256
    assert document["profile"] == "guard"
    assert document["overrides"] == {"gradient.warn_norm": 5.0}
    assert document["torch"] == torch_version() == torch.__version__


def test_a_fresh_lock_holds(lock: Lock) -> None:
    assert check_lock(lock).holds
    assert check_lock(lock).notes == ()


@settings(deadline=None)
@given(overrides())
def test_any_config_is_locked_and_comes_back(changes: dict[str, Any]) -> None:
    config = load("1.0.0", **changes)
    document = json.loads(json.dumps(Lock.of(config).document()))
    assert check_lock(Lock.from_document(document, "lock")).holds
    assert load(document) == config


def moved(tmp_path: Path, **changes: Any) -> Catalogue:
    """The installed catalogue with another 1.0.0."""
    release = json.loads((RELEASES / "1.0.0.json").read_text())
    for path, value in changes.items():
        section, _, name = path.partition("__")
        release[section] = {**release[section], name: value} if name else value
    release["sha256"] = document_sha256(release)
    (tmp_path / "1.0.0.json").write_text(json.dumps(release))
    return Catalogue(tmp_path)


def test_a_release_that_moved_breaks_the_lock_by_field(lock: Lock, tmp_path: Path) -> None:
    found = check_lock(lock, moved(tmp_path, gradient__spike_ratio=9.0))
    assert not found.holds
    assert any(line.startswith("sha256: config 1.0.0 was locked with") for line in found.broken)
    assert "gradient.spike_ratio: 10.0 -> 9.0 (locked -> installed)" in found.broken


def test_another_text_of_a_release_with_the_same_values_breaks_the_lock_too(lock: Lock, tmp_path: Path) -> None:
    found = check_lock(lock, moved(tmp_path, title="other"))
    assert [line.partition(":")[0] for line in found.broken] == ["sha256"]


def test_a_version_that_is_gone_breaks_the_lock(lock: Lock, tmp_path: Path) -> None:
    (tmp_path / "2.0.0.json").write_text(json.dumps(_renamed("2.0.0")))
    assert check_lock(lock, Catalogue(tmp_path)).broken == ("version: 1.0.0 is not installed; available: 2.0.0 (draft)",)


def _renamed(version: str) -> dict[str, Any]:
    release = json.loads((RELEASES / "1.0.0.json").read_text()) | {"version": version, "released": None}
    release["sha256"] = document_sha256(release)
    return dict(release)


def test_an_override_that_the_release_refuses_now_breaks_the_lock(lock: Lock, tmp_path: Path) -> None:
    document = lock.document() | {"overrides": {"gradient.warn_norm": 5.0, "gradient.gone": 1.0}}
    assert any("gradient.gone: unknown key" in line for line in check_lock(Lock.from_document(document, "lock")).broken)


def test_another_torch_is_told_and_does_not_break_the_lock(lock: Lock) -> None:
    found = check_lock(Lock.from_document(lock.document() | {"torch": "1.0"}, "lock"))
    assert found.holds
    assert found.notes[0].startswith("torch: locked under 1.0, installed is ")


def test_values_changed_in_the_lock_break_it_and_keep_it_from_loading(lock: Lock, project: Path) -> None:
    document = lock.document()
    document["values"]["gradient"]["warn_norm"] = 6.0
    found = check_lock(Lock.from_document(document, "lock"))
    assert found.broken[0].startswith("digest: the lock states")
    assert "gradient.warn_norm: 6.0 -> 5.0 (locked -> installed)" in found.broken
    (project / "stability.lock").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"stability\.lock: digest: the lock states .* Write it anew: latent-drift config lock"):
        load("stability.lock")


def test_values_that_the_schema_gained_since_are_noted(lock: Lock) -> None:
    from latent_drift.config.v1 import canonical_sha256

    document = lock.document()
    del document["values"]["linalg"]["jitter_attempts"]
    document["digest"] = canonical_sha256(document["values"])
    found = check_lock(Lock.from_document(document, "lock"))
    assert found.holds
    assert found.notes == ("linalg.jitter_attempts: new in the schema since the lock was written",)


def test_another_kind_of_clip_breaks_the_lock(lock: Lock, tmp_path: Path) -> None:
    found = check_lock(lock, moved(tmp_path, gradient__clip={"kind": "value", "max_value": 1.0}))
    assert "gradient.clip.kind: none -> value (locked -> installed)" in found.broken
    assert "gradient.clip.max_value: (absent) -> 1.0 (locked -> installed)" in found.broken


def test_a_lock_can_be_loaded_and_pins_its_hash(lock: Lock, project: Path) -> None:
    (project / "stability.lock").write_text(json.dumps(lock.document()))
    assert load("stability.lock") == load("1.0.0", profile="guard", gradient={"warn_norm": 5.0})
    (project / "stability.lock").write_text(json.dumps(lock.document() | {"sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="sha256: expected 0000"):
        load("stability.lock")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lock_version": 2}, "lock_version: should be 1; got 2"),
        ({"sha256": "x"}, "sha256"),
        ({"profle": "x"}, "profle: unknown key; closest known: profile"),
    ],
)
def test_what_is_no_lock_is_refused_by_place(lock: Lock, project: Path, changes: dict[str, Any], message: str) -> None:
    (project / "stability.lock").write_text(json.dumps(lock.document() | changes))
    with pytest.raises(ConfigError, match=f"stability.lock: {message}"):
        read_lock(project / "stability.lock")


def test_a_lock_that_is_not_there_says_how_to_make_one(project: Path) -> None:
    with pytest.raises(ConfigError, match="Write one with: latent-drift config lock"):
        read_lock(project / "stability.lock")
