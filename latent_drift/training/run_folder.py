"""The results folder of a run: run.json, metrics.jsonl, checkpoint.pt, and what is made of them."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from latent_drift.errors import UsageError
from latent_drift.training.checkpoint import FILE_NAME, PREVIOUS

RUN: Final = "run.json"
METRICS: Final = "metrics.jsonl"
RESULT: Final = "result.json"
SAMPLES: Final = "samples.txt"
PLOTS: Final = "plots"
TENSORBOARD: Final = "tensorboard"

DEFAULT_PARENT: Final = Path("runs")
"""Where runs without --out are put, numbered."""


class RunFolder:
    """The paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        return self.path / FILE_NAME

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def has_checkpoint(self) -> bool:
        """Whether a run can be continued here."""
        return self.checkpoint.exists() or self.checkpoint.with_name(FILE_NAME + PREVIOUS).exists()

    def discard(self) -> None:
        """Take away what a run that never began has put here, and the folder with it if nothing else is in it."""
        for name in (RUN, METRICS):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # it holds something else, or is the reader's working directory
            self.path.rmdir()

    def write_json(self, name: str, document: Any) -> None:
        """Write a file of plain data, whole or not at all.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        write_whole(self.path / name, (json.dumps(document, indent=2, default=str) + "\n").encode())


def require_free(out: Path | None) -> None:
    """Refuse a folder in which no new run can begin.

    Raises:
        UsageError: it is a file, holds a run, or holds anything else.
    """
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder, which will be made")
    if (out / RUN).exists() or RunFolder(out).has_checkpoint:
        raise UsageError(f"--out {out}: holds a run already{_described(out)}. Give another folder, or --resume to continue that run.")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"--out {out}: is not empty and holds no run; give another folder")


def new_folder(out: Path | None, kind: str) -> RunFolder:
    """An empty folder for a run: `out`, made if need be, or the next free `runs/KIND-N`.

    Raises:
        UsageError: `out` holds a run or anything else, or cannot be made.
    """
    try:
        if out is None:
            return RunFolder(_next_free(kind))
        require_free(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out or DEFAULT_PARENT}: cannot be made: {error.strerror}. Give a folder that can be written.") from error
    return RunFolder(out)


def existing_folder(out: Path | None) -> RunFolder:
    """The folder of a run to continue.

    Raises:
        UsageError: there is none.
    """
    if out is None:
        raise UsageError("--resume needs to know which run: add --out FOLDER")
    if not out.is_dir():
        raise UsageError(f"--out {out}: there is no such folder, so there is nothing to resume; leave --resume out to start a run there")
    folder = RunFolder(out)
    if not folder.has_checkpoint:
        raise UsageError(f"--out {out}: holds no {FILE_NAME}, so there is nothing to resume; leave --resume out and give an empty folder")
    return folder


def _next_free(kind: str) -> Path:
    DEFAULT_PARENT.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = DEFAULT_PARENT / f"{kind}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _described(out: Path) -> str:
    """What kind of run a folder holds, where its run.json says so."""
    try:
        settings = json.loads((out / RUN).read_text(encoding="utf-8"))["settings"]
        return f" ({settings['kind']}, {settings['steps']} steps, seed {settings['seed']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place and move it there, so that nobody sees half of it.

    Raises:
        OSError: it cannot be written; the old file stays, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(temporary, "xb") as file:  # with the permissions of the umask, where mkstemp would let nobody else read
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
