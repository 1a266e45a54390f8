"""A full disk loses nothing: what cannot be written is held, the last whole checkpoint stays, and the end is put elsewhere."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from latent_drift.errors import UsageError
from latent_drift.training.checkpoint import read_checkpoint
from latent_drift.training.run import Record
from tests.training.conftest import Start, folder, same, tiny


class Disk:
    """Writing and syncing files below a folder fails while it is full, as the operating system has it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *full_below: Path) -> None:
        self.full = False
        self._below = full_below
        for name in ("pwrite", "fsync", "write"):
            monkeypatch.setattr(os, name, self._refusing(getattr(os, name)))

    def _refusing(self, real):  # type: ignore[no-untyped-def]
        def call(descriptor, *arguments):  # type: ignore[no-untyped-def]
            if self.full and any(Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(path) for path in self._below):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, *arguments)

        return call


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell which file is written")


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_a_disk_that_is_full_for_a_while_costs_nothing(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("raccoon", checkpoint_every=4)
    start(settings).train(folder(tmp_path / "whole"))
    disk, notes = Disk(monkeypatch, tmp_path / "run"), list[str]()

    def fill(record: Record) -> None:
        disk.full = 5 <= record["step"] < 14

    end = start(settings, on_step=fill, on_note=notes.append).train(folder(tmp_path / "run"))
    assert (end.finished, end.unsaved) == (True, None)
    assert same(dict(read_checkpoint(tmp_path / "run").content), dict(read_checkpoint(tmp_path / "whole").content))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert files(tmp_path / "run") == ["checkpoint.pt", "checkpoint.pt.previous", "metrics.jsonl", "run.json"]  # no half files
    assert [note.split(":")[0] for note in notes] == ["metrics.jsonl", "checkpoint of step 8", "checkpoint of step 12", "metrics.jsonl"]
    assert "No space left on device" in notes[0]
    assert "the one of step 4 stays" in notes[1]


def test_a_disk_that_stays_full_leaves_the_run_elsewhere(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("raccoon", checkpoint_every=4)
    start(settings).train(folder(tmp_path / "whole"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    disk = Disk(monkeypatch, tmp_path / "run")

    def fill(record: Record) -> None:
        disk.full = record["step"] >= 5

    end = start(settings, on_step=fill).train(folder(tmp_path / "run"), stop_after=15)
    assert end.unsaved is not None
    assert end.unsaved.errno == errno.ENOSPC
    assert end.rescued is not None
    disk.full = False
    assert read_checkpoint(end.rescued).step == 15
    assert [json.loads(line)["step"] for line in (end.rescued / "metrics.jsonl").read_text().splitlines()] == list(range(15))
    assert read_checkpoint(tmp_path / "run").step == 4
    for place in (end.rescued, tmp_path / "run"):  # from either the run goes on to what it would have been
        assert start(settings, place).train(folder(place)).finished
        assert same(dict(read_checkpoint(place).content), dict(read_checkpoint(tmp_path / "whole").content))
        assert (place / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_where_nothing_can_be_written_anywhere_the_last_checkpoint_stays(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    disk = Disk(monkeypatch, tmp_path)

    def fill(record: Record) -> None:
        disk.full = record["step"] >= 5

    end = start(tiny("raccoon", checkpoint_every=4), on_step=fill).train(folder(tmp_path / "run"))
    assert end.unsaved is not None
    assert end.rescued is None
    disk.full = False
    assert read_checkpoint(tmp_path / "run").step == 4


def test_metrics_alone_that_cannot_be_written_are_rescued_too(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is whole, its records are not: a resume there would miss them."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    run = tmp_path / "run"
    disk = Disk(monkeypatch, run / "metrics.jsonl")

    def fill(record: Record) -> None:
        disk.full = True

    end = start(tiny("raccoon", 8), on_step=fill).train(folder(run))
    assert end.rescued is not None
    assert len((end.rescued / "metrics.jsonl").read_bytes().splitlines()) == 8


def test_a_new_run_that_cannot_be_saved_is_refused_before_its_first_step(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, taken = Disk(monkeypatch, tmp_path / "run"), list[Record]()
    disk.full = True
    with pytest.raises(UsageError, match=r"run: cannot be written \(No space left on device\).*Make room, or give another --out"):
        start(tiny("raccoon"), on_step=taken.append).train(folder(tmp_path / "run"))
    assert taken == []
    assert not (tmp_path / "run").exists()  # so that the same command can be given again
    disk.full = False
    assert start(tiny("raccoon", 3)).train(folder(tmp_path / "run")).finished


def test_a_folder_that_is_removed_under_the_run_is_there_again_whole(start: Start, tmp_path: Path) -> None:
    settings, place = tiny("raccoon", checkpoint_every=4), tmp_path / "run"
    start(settings).train(folder(tmp_path / "whole"))

    def remove(record: Record) -> None:
        if record["step"] == 9:
            shutil.rmtree(place)

    end = start(settings, on_step=remove).train(folder(place), stop_after=15)
    assert end.unsaved is None
    assert len((place / "metrics.jsonl").read_bytes().splitlines()) == 15
    assert files(place) == ["checkpoint.pt", "checkpoint.pt.previous", "metrics.jsonl", "run.json"]
    assert start(settings, place).train(folder(place)).finished
    assert same(dict(read_checkpoint(place).content), dict(read_checkpoint(tmp_path / "whole").content))
    assert (place / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
