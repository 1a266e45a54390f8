"""Writing the hash of a draft, and never that of a release."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest

import latent_drift.config.stamp as stamp_module
from latent_drift.config.catalogue import RELEASES, Catalogue
from latent_drift.config.stamp import main, stamp
from latent_drift.errors import ConfigError


@pytest.fixture
def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A draft of 1.0.0 in a directory of its own, with a value changed and the hash not yet."""
    directory = tmp_path / "releases"
    directory.mkdir()
    path = directory / "1.0.0.json"
    document = json.loads((RELEASES / "1.0.0.json").read_text()) | {"released": None}
    document["gradient"]["warn_norm"] = 55.0
    path.write_text(json.dumps(document))
    monkeypatch.setattr(stamp_module, "RELEASES", directory)
    return path


def test_a_changed_draft_loads_again_after_stamping(draft: Path) -> None:
    with pytest.raises(ConfigError, match="changed after it was made"):
        Catalogue(draft.parent).select("")
    sha256 = stamp(draft)
    release = Catalogue(draft.parent).select("")
    assert (release.sha256, release.draft) == (sha256, True)


def test_a_release_gets_its_date_once_and_is_never_written_again(draft: Path) -> None:
    stamp(draft, datetime.date(2027, 1, 2))
    assert Catalogue(draft.parent).select("").released == datetime.date(2027, 1, 2)
    content = draft.read_bytes()
    with pytest.raises(ConfigError, match="released on 2027-01-02 and never changes again"):
        stamp(draft)
    assert draft.read_bytes() == content


def test_the_command_stamps_drafts_and_passes_releases_by(draft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = draft.with_name("2.0.0.json")
    shutil.copy(draft, other)
    other.write_text(other.read_text().replace('"1.0.0"', '"2.0.0"', 1))
    stamp(other, datetime.date(2027, 1, 2))
    frozen = other.read_bytes()
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("1.0.0 sha256 ")
    assert other.read_bytes() == frozen
    assert main(["2.0.0"]) == 2
    assert "never changes again" in capsys.readouterr().err
    assert main(["3.0.0"]) == 2
    assert main(["1.0.0", "--release", "2027-03-04"]) == 0
    assert [release.draft for release in Catalogue(draft.parent).releases()] == [False, False]


def test_stamping_what_is_stamped_changes_nothing(draft: Path) -> None:
    stamp(draft)
    content = draft.read_bytes()
    stamp(draft)
    assert draft.read_bytes() == content
