"""Records kept as JSON, one a line: written in one step, read back with the line named where one is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from latent_drift.errors import UsageError


class _Record(Protocol):
    def as_json(self) -> str: ...


R = TypeVar("R")


def write(records: Iterable[_Record], path: Path) -> None:
    """Write one JSON object a line, replacing the file at once so that no half-written one is left."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(record.as_json() + "\n" for record in records), encoding="utf-8")
    partial.replace(path)


def read(path: Path, parse: Callable[[str], R], what: str, one: str) -> list[R]:
    """What `parse` makes of each line of a file that `write` wrote; errors call the file's content `what` and a line of it `one`.

    Raises:
        UsageError: the file is missing, or a line of it does not parse; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"no {what} can be read from {path}: {error.strerror}. Give the folder that --report wrote") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse(line))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{path}:{number} is not {one} of this tool: {error}") from error
    return records
