"""The released data: complete, never changed, and told in the changelog."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from pathlib import Path

import pytest

from latent_drift.config import available, load
from latent_drift.config.catalogue import RELEASES, Release, document_sha256, installed
from latent_drift.config.overlay import leaves
from latent_drift.config.problems import known_paths
from latent_drift.config.v1 import StabilityConfig

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
FROZEN: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "fixtures" / "released.json").read_text())
"""Version -> date, hash of the values and of the file's bytes, of everything that was ever released. Lines are added, never changed."""

PROFILES = ["observe", "guard", "train", "strict"]
ALL = pytest.mark.parametrize("release", available(), ids=lambda release: release.version)

ENTRY = re.compile(r"^- config (?P<version>\S+) \((?P<date>draft|\d{4}-\d{2}-\d{2})\)(?:: sha256 (?P<sha256>[0-9a-f]{64}))?", re.MULTILINE)
"""A changelog line: `- config 1.1.0 (2027-01-31): sha256 <64 hex digits>. What moved and why`, or `- config 1.2.0 (draft): ...`."""


def changelog_problems(changelog: str, releases: tuple[Release, ...]) -> list[str]:
    """What the Numerics sections of a changelog lack: an entry for each release, with its date and hash once it has them."""
    sections = re.findall(r"^### Numerics\n(.*?)(?=^##|\Z)", changelog, re.MULTILINE | re.DOTALL)
    entries = {found["version"]: found for section in sections for found in ENTRY.finditer(section)}
    problems = []
    for release in releases:
        found = entries.get(release.version)
        date = "draft" if release.released is None else release.released.isoformat()
        if found is None:
            problems.append(f"config {release.version} has no entry")
        elif found["date"] != date:
            problems.append(f"config {release.version} is {date}, its entry says {found['date']}")
        elif not release.draft and found["sha256"] != release.sha256:
            problems.append(f"config {release.version} has sha256 {release.sha256}, its entry says {found['sha256']}")
    return problems


def test_every_release_has_its_entry_in_the_changelog() -> None:
    assert changelog_problems(CHANGELOG.read_text(encoding="utf-8"), available()) == []


def test_a_changelog_without_an_entry_or_with_another_hash_is_noticed() -> None:
    release = Release("1.0.0", "", datetime.date(2027, 1, 31), "a" * 64, False, {})
    line = f"- config 1.0.0 (2027-01-31): sha256 {'a' * 64}. Text."
    assert changelog_problems(f"## 1.0\n### Numerics\n{line}\n### Fixed\n", (release,)) == []
    assert changelog_problems(f"### Fixed\n{line}\n", (release,)) == ["config 1.0.0 has no entry"]
    assert changelog_problems(f"### Numerics\n{line.replace('a' * 64, 'b' * 64)}\n", (release,)) == [
        f"config 1.0.0 has sha256 {'a' * 64}, its entry says {'b' * 64}"
    ]
    assert changelog_problems("### Numerics\n- config 1.0.0 (draft): Text.\n", (release,)) == ["config 1.0.0 is 2027-01-31, its entry says draft"]
    assert changelog_problems("### Numerics\n- config 1.0.0 (2027-01-31): Text.\n", (release,)) == [
        f"config 1.0.0 has sha256 {'a' * 64}, its entry says None"
    ]


@ALL
def test_a_released_file_is_what_it_was_when_it_was_released(release: Release) -> None:
    path = RELEASES / f"{release.version}.json"
    if release.released is None:
        assert release.version not in FROZEN
        return
    assert release.version in FROZEN, f"add {release.version} to tests/config/fixtures/released.json when it is released, and never change it again"
    found = {"released": release.released.isoformat(), "sha256": release.sha256, "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert found == FROZEN[release.version], f"config {release.version} is released: its file never changes again; make a new version"


def test_no_released_file_is_gone() -> None:
    assert FROZEN.keys() <= {release.version for release in available()}


@ALL
def test_the_stated_hash_is_that_of_the_canonical_json_without_it(release: Release) -> None:
    document = json.loads((RELEASES / f"{release.version}.json").read_text())
    stated = document.pop("sha256")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert hashlib.sha256(text.encode()).hexdigest() == stated == release.sha256 == document_sha256(document)


@pytest.mark.parametrize("profile", PROFILES)
@ALL
def test_every_profile_of_every_release_loads(release: Release, profile: str) -> None:
    config = load(release.version, profile=profile)
    assert (config.version, config.profile, config.sha256) == (release.version, profile, release.sha256)
    assert set(release.profiles) == set(PROFILES)


@ALL
def test_a_release_states_every_value_of_its_schema_itself(release: Release) -> None:
    """Nothing is left to a default in the code, where it could move unseen; dated releases lack what the schema gained later."""
    stated = {path for path, _ in leaves(release.values)}
    resolved = {path for path, _ in leaves(load(release.version, profile="guard").values())}
    assert stated <= resolved
    if release.draft:
        assert stated == resolved


@ALL
def test_notes_are_on_values_that_exist(release: Release) -> None:
    assert set(release.notes) <= set(known_paths(StabilityConfig))
    assert all(note.strip() == note and note for note in release.notes.values())


def test_only_the_published_values_are_marked_as_superseded_and_deprecated() -> None:
    for release in available():
        deprecated = [path for path, note in release.notes.items() if note.startswith("deprecated: ")]
        assert bool(deprecated) == release.superseded == (release.version == "0.9.0")


def test_the_published_values_are_those_of_the_audit() -> None:
    config = load("0.9.0")
    half = config.precision["float16"]
    assert (half.division_eps, half.mask_value, half.exp_max, half.log_floor) == (1e-6, -1e9, 20.0, 1e-7)
    assert config.exp.bound == 20.0
    assert (config.latent.log_std_min, config.latent.log_std_max, config.latent.bound) == (-10.0, 2.0, "clamp")
    assert (config.exp.gradient_outside, config.gradient.default_max_norm, config.gradient.default_max_value) == ("zero", 1.0, 10.0)
    assert (config.latent.scale_min, config.latent.scale_max) == (0.001, 100.0)
    assert "1e-4" in installed().release("0.9.0").notes["precision.float16.division_eps"]
