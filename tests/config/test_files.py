import errno
import os
import stat

import pytest

from latent_drift.config.files import write_atomically
from latent_drift.errors import ConfigError


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def test_new_files_follow_the_umask_and_old_ones_keep_their_mode(folder, umask):
    path = folder / "a.json"
    write_atomically(path, "one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o604)
    write_atomically(path, "two")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("two", 0o604)


@pytest.mark.parametrize("fails", ["write", "chmod", "replace"])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(folder, monkeypatch, fails):
    path = folder / "a.json"
    write_atomically(path, "old")

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fails == "write":
        full_device = "/dev/full"
        if not os.path.exists(full_device):
            pytest.skip("no /dev/full here")
        real = open

        def onto_full_device(file, mode="r", **named):
            real(file, mode, **named).close()  # the temporary file is there, its content does not fit
            return real(full_device, "w", encoding="utf-8")

        monkeypatch.setattr("builtins.open", onto_full_device)
    else:
        monkeypatch.setattr(os, fails, full)
    with pytest.raises(ConfigError, match=r"cannot be written.*No space left"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [file.name for file in folder.iterdir()] == ["a.json"]


def test_an_interrupted_write_leaves_nothing(folder, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(folder / "a.json", "new")
    assert not list(folder.iterdir())


def test_a_folder_that_is_not_there_is_named(folder):
    with pytest.raises(ConfigError, match=r"nowhere.*cannot be written.*No such file"):
        write_atomically(folder / "nowhere" / "a.json", "new")
