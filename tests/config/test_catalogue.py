"""Releases: read, verified, chosen by a pin."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from latent_drift.config import available, load
from latent_drift.config.catalogue import RELEASES, Catalogue, document_sha256, installed, parse_pin
from latent_drift.config.load import resolve
from latent_drift.config.overlay import leaves
from latent_drift.config.sources import Statement
from latent_drift.errors import ConfigError

MakeCatalogue = Callable[..., Catalogue]


def document(version: str = "1.0.0", **changes: Any) -> dict[str, Any]:
    """A release document with a hash of its own."""
    base = json.loads((RELEASES / "1.0.0.json").read_text())
    base |= {"version": version, "released": None, "superseded": False, **changes}
    return dict(base) | {"sha256": document_sha256(base)}


@pytest.fixture
def make(tmp_path: Path) -> MakeCatalogue:
    """A catalogue of (version, changes) releases in a directory of its own."""

    def of(*releases: tuple[str, dict[str, Any]]) -> Catalogue:
        directory = tmp_path / "releases"
        directory.mkdir(exist_ok=True)
        for version, changes in releases:
            (directory / f"{version}.json").write_text(json.dumps(document(version, **changes)))
        return Catalogue(directory)

    return of


DATED = {"released": "2027-01-01"}


def test_available_lists_versions_dates_and_hashes_oldest_first() -> None:
    releases = available()
    assert [release.version for release in releases] == sorted((release.version for release in releases), key=Version)
    assert {"0.9.0", "1.0.0"} <= {release.version for release in releases}
    for release in releases:
        assert release.released is None or isinstance(release.released, datetime.date)
        assert release.draft == (release.released is None)
        assert release.sha256 == load(release.version).sha256
        assert len(release.sha256) == 64
        assert release.version in str(release)


@pytest.mark.parametrize("pin", ["1.0.0", "v1.0.0", "1.0", "1", "==1.0.0", "~=1.0", ">=1,<2", "==1.*", ">=0.9", "!=0.9.0", "", " ~=1.0 ", "===1.0.0"])
def test_a_pin_finds_the_newest_release_that_satisfies_it(pin: str) -> None:
    assert load(pin).version == "1.0.0"


@pytest.mark.parametrize("pin", ["0.9.0", "0.9", "<1", "~=0.9.0", "==0.*"])
def test_the_published_values_are_there_for_who_names_them(pin: str) -> None:
    assert load(pin).version == "0.9.0"


def test_no_pin_gives_the_corrected_values_in_profile_train() -> None:
    assert (load().version, load().profile) == ("1.0.0", "train")


def test_a_dated_release_goes_before_a_newer_draft_and_any_before_a_superseded_one(make: MakeCatalogue) -> None:
    catalogue = make(("0.5.0", {**DATED, "superseded": True}), ("1.0.0", DATED), ("1.1.0", {}), ("1.2.0", {**DATED, "superseded": True}))
    assert catalogue.select("").version == "1.0.0"
    assert catalogue.select(">=1.1").version == "1.1.0"
    assert catalogue.select(">=1.2").version == "1.2.0"
    assert catalogue.select("<1").version == "0.5.0"
    assert make(("1.3.0", DATED)).select("").version == "1.3.0"


def test_versions_are_ordered_as_versions_not_as_text(make: MakeCatalogue) -> None:
    catalogue = make(("1.9.0", DATED), ("1.10.0", DATED))
    assert catalogue.versions == ("1.9.0", "1.10.0")
    assert catalogue.select("~=1.0").version == "1.10.0"


def test_a_pin_of_a_draft_holds_until_it_has_a_date(make: MakeCatalogue) -> None:
    drafts = make(("1.0.0", {}), ("1.1.0", DATED))
    assert drafts.select("1.0.0+draft").version == "1.0.0"
    released = make(("1.0.0", DATED))
    with pytest.raises(ConfigError, match=r"'1\.0\.0\+draft': config 1\.0\.0 \(2027-01-01\) is no draft any more.*Pin '1\.0\.0'"):
        Catalogue(released.directory).select("1.0.0+draft")


def test_a_prerelease_is_for_who_names_it_or_has_nothing_else(make: MakeCatalogue) -> None:
    catalogue = make(("1.0.0", DATED), ("1.1.0rc1", DATED))
    assert catalogue.select(">=1").version == "1.0.0"
    assert catalogue.select("1.1.0rc1").version == "1.1.0rc1"
    assert catalogue.select(">=1.1.0rc1").version == "1.1.0rc1"
    assert catalogue.select(">1.0.0,<1.2").version == "1.1.0rc1"


@pytest.mark.parametrize(
    ("pin", "nearest"),
    [("2.0.0", "1.0.0"), (">=3", "1.0.0"), ("~=0.8.0", "0.9.0"), ("0.1", "0.9.0"), ("1.0.1", "1.0.0"), (">1.0,<1.1", "1.0.0"), ("===x", "1.0.0")],
)
def test_a_pin_that_nothing_satisfies_lists_what_there_is_and_the_nearest(pin: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(pin)
    message = str(caught.value)
    assert repr(pin) in message
    assert "0.9.0 (" in message
    assert "1.0.0 (" in message
    assert f"Nearest: {nearest}." in message


@pytest.mark.parametrize("pin", ["latest", "one", "1.0.0.toml.bak", ">=", "~=1", "=1.0", "1.0 || 2.0", "guard"])
def test_what_is_no_pin_is_refused_with_examples(pin: str) -> None:
    with pytest.raises(ConfigError, match=r"is no pin of a stability config.*'~=1\.0'"):
        load(pin)


@settings(deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_a_pin_or_refused_as_one(text: str) -> None:
    try:
        assert isinstance(parse_pin(text).contains("1.0.0"), bool)
        return
    except ConfigError as error:
        message = str(error)
    assert repr(text) in message


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 12)] * 3).filter(lambda v: v not in {(0, 9, 0), (1, 0, 0)}))
def test_a_version_that_is_not_there_is_never_replaced_by_another(parts: tuple[int, int, int]) -> None:
    version = ".".join(map(str, parts))
    with pytest.raises(ConfigError, match=r"Available: 0\.9\.0"):
        load(version)


def test_a_tampered_release_fails_its_hash_and_says_both(make: MakeCatalogue) -> None:
    catalogue = make(("1.0.0", DATED))
    path = catalogue.directory / "1.0.0.json"
    changed = json.loads(path.read_text())
    changed["gradient"]["warn_norm"] = 1e9
    path.write_text(json.dumps(changed))
    with pytest.raises(ConfigError) as caught:
        Catalogue(catalogue.directory).select("1.0.0")
    assert changed["sha256"] in str(caught.value)
    assert document_sha256(changed) in str(caught.value)
    assert str(path) in str(caught.value)


LEAF_PATHS = [path for path, _ in leaves({key: value for key, value in document().items() if key != "sha256"})]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LEAF_PATHS), st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3), st.booleans(), st.none()))
def test_no_single_value_of_a_release_can_be_changed_unnoticed(tmp_path: Path, path: str, value: Any) -> None:
    changed = document(released="2027-01-01")
    *parents, name = _keys(changed, path)
    target: Any = changed
    for parent in parents:
        target = target[parent]
    is_same = type(target[name]) is type(value) and target[name] == value
    target[name] = value
    directory = tmp_path / "tampered"
    directory.mkdir(exist_ok=True)
    (directory / "1.0.0.json").write_text(json.dumps(changed))
    if is_same:
        assert Catalogue(directory).release("1.0.0").version == "1.0.0"
    else:
        with pytest.raises(ConfigError, match="changed after it was made"):
            Catalogue(directory).release("1.0.0")


def _keys(document: Any, path: str) -> list[str]:
    """The keys of a dotted path, where notes have dots in theirs."""
    if path.startswith("notes."):
        return ["notes", path.removeprefix("notes.")]
    return path.split(".")


def test_formatting_of_a_release_does_not_count_and_a_changed_value_does(make: MakeCatalogue) -> None:
    catalogue = make(("1.0.0", {}))
    path = catalogue.directory / "1.0.0.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    assert Catalogue(catalogue.directory).select("1.0.0").draft


def test_a_release_under_another_name_is_refused(make: MakeCatalogue) -> None:
    directory = make(("1.0.0", {})).directory
    (directory / "1.0.0.json").rename(directory / "2.0.0.json")
    with pytest.raises(ConfigError, match=r"is version 1\.0\.0 by its content"):
        Catalogue(directory).select("2.0.0")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_broken_release_file_is_refused_by_name(make: MakeCatalogue, text: str) -> None:
    directory = make(("1.0.0", {})).directory
    (directory / "1.0.0.json").write_text(text)
    with pytest.raises(ConfigError, match=r"1\.0\.0\.json"):
        Catalogue(directory).select("")


def test_an_installation_without_releases_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Reinstall latent-drift"):
        Catalogue(tmp_path)


def test_a_broken_release_does_not_keep_another_from_loading(make: MakeCatalogue) -> None:
    catalogue = make(("1.0.0", DATED), ("2.0.0", DATED))
    (catalogue.directory / "2.0.0.json").write_text("{}")
    assert resolve([Statement("test", pin="1.0.0")], Catalogue(catalogue.directory)).config.version == "1.0.0"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), datetime.date(2027, 1, 1), {1, 2}])
def test_a_release_that_is_no_plain_data_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match="argument: a release is plain JSON data with finite numbers"):
        load({**document(), "title": value})


@pytest.mark.parametrize("changes", [{"version": "one"}, {"released": "soon"}, {"released": 3}])
def test_a_release_without_a_version_or_date_that_is_one_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="argument: no release of stability values"):
        load(document(**{"version": "3.0.0", **changes}))


def test_release_documents_cannot_be_changed_in_memory() -> None:
    release = installed().release("1.0.0")
    with pytest.raises(TypeError):
        release.document["gradient"]["warn_norm"] = 1.0  # type: ignore[index]
    release.values["act"] = False  # a copy
    assert release.values["act"] is True
