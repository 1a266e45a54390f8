"""metrics.jsonl: one JSON object a step, appended as the run goes, never half a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_drift.errors import UsageError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


class MetricsFile:
    """Appends records to a file of JSON lines; what cannot be written now (a full disk) is kept and written with a later one.

    Args:
        path: of the file, made if need be.
        steps: the records of steps before this one stay, all others are cut off: a resumed run writes them again.

    Raises:
        UsageError: the file lacks a record of a step before `steps`, and is left alone; or it cannot be opened, or another process has it.
    """

    def __init__(self, path: Path, steps: int = 0) -> None:
        self.path = path
        try:
            self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)
        except OSError as error:
            raise UsageError(f"{path}: cannot be opened for writing: {error.strerror}. Give an --out folder that can be written.") from error
        try:
            self._claim()
            self._end = self._end_of(steps)
            self._file.truncate(self._end)
        except BaseException:
            self._file.close()
            raise
        self._pending: list[bytes] = []

    def _claim(self) -> None:
        """Keep other processes from writing the same run."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.path}: another process is writing this run; wait for it, or end it (Ctrl-C leaves a checkpoint)") from None
        except OSError:  # a file system without locks
            pass

    def _end_of(self, steps: int) -> int:
        """The byte behind the record of the step before `steps`."""
        end = 0
        for expected in range(steps):
            line = self._line_at(end)
            try:
                found = json.loads(line)["step"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                found = None
            if found != expected:
                raise UsageError(
                    f"{self.path}: has no record of step {expected}, although the checkpoint is of step {steps}: "
                    "the file was changed, or belongs to another run. Put it back, or start a new run with another --out."
                )
            end += len(line)
        return end

    def _line_at(self, offset: int) -> bytes:
        line = b""
        while not line.endswith(b"\n") and (chunk := os.pread(self._file.fileno(), 512, offset + len(line))):
            head, newline, _ = chunk.partition(b"\n")
            line += head + newline
        return line

    def append(self, record: Mapping[str, Any]) -> OSError | None:
        """Write a record behind the others; numbers that are not finite become null.

        Returns:
            What kept it from being written, or None. The record is then held and written with the next one.
        """
        plain = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}
        self._pending.append(json.dumps(plain, allow_nan=False).encode() + b"\n")
        return self.flush()

    def flush(self) -> OSError | None:
        """Try to write what is held."""
        if not self._pending:
            return None
        data = b"".join(self._pending)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], self._end + written)
        except OSError as error:
            try:
                os.ftruncate(self._file.fileno(), self._end)  # no half line
            except OSError:
                pass
            return error
        self._end += len(data)
        self._pending.clear()
        return None

    def sync(self) -> OSError | None:
        """Write what is held and have it on the disk, before a checkpoint that counts on it; a file that was taken away is put back."""
        error = self.flush()
        if error is None:
            try:
                if not self._is_in_place():
                    self._put_back()
                os.fsync(self._file.fileno())
            except OSError as failure:
                return failure
        return error

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def _put_back(self) -> None:
        """What was removed is still there for whoever has it open: all its records go into a new file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "w+b", buffering=0)
        try:
            data, written = self.content(), 0
            while written < len(data):
                written += os.pwrite(file.fileno(), data[written:], written)
        except BaseException:
            file.close()
            raise
        self._file.close()
        self._file = file
        self._claim()

    def content(self) -> bytes:
        """All records, those that are held included."""
        return os.pread(self._file.fileno(), self._end, 0) + b"".join(self._pending)

    def close(self) -> None:
        """Close the file; what is still held is lost unless `content` was kept."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that is not whole is left out.

    Raises:
        UsageError: there is no such file, or a line in it is no record.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no metrics file; give the folder of a run")
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: is no record: {error}") from error
        records.append(record)
    return records
