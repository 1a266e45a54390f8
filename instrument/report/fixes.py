"""The ready changes to the source, as `python -m patches diff --from-report` gives them, kept in the folder as fixes.diff.

They are made by a process of its own: a file that cannot be parsed, a missing dependency or a defect there costs the report its diff and nothing
else, and a script's own `patches` package is not in the way.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from instrument.events import Event

FIXES = "fixes.diff"
_HOME = str(Path(__file__).resolve().parents[2])
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from patches.cli import main; main()"
_SECONDS = 60.0
_PLACES, _NOTE = "# places: ", "# "
_HUNK = re.compile(r"@@ -(?P<first>\d+)(?:,(?P<count>\d+))? \+")
_UNKNOWN = re.compile(r"(?P<path>.+):(?P<line>\d+): .* fired there; no rule knows a fix for this line")


@dataclass(frozen=True, slots=True)
class Hunk:
    """Changed lines that stand together: the lines of the old file that they cover, and each line with its kind (`+`, `-`, or blank for context)."""

    first: int
    last: int
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FileDiff:
    """The changes to one file, by the name that the diff gives it."""

    name: str
    hunks: tuple[Hunk, ...]

    def at(self, line: int | None) -> list[Hunk]:
        """The changes that this line of the old file is in or beside."""
        return [hunk for hunk in self.hunks if line is not None and hunk.first <= line <= hunk.last]


@dataclass(frozen=True, slots=True)
class Fixes:
    """A unified diff that mends what fired, or no diff and the reason."""

    diff: str = ""
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[FileDiff]:
        """The diff by file."""
        lines = self.diff.splitlines()
        heads = {at for at in range(len(lines) - 1) if lines[at].startswith("--- ") and lines[at + 1].startswith("+++ ")}
        found: list[tuple[str, list[tuple[int, int, list[tuple[str, str]]]]]] = []
        for at, line in enumerate(lines):
            start = _HUNK.match(line)
            if at in heads:
                found.append((line[4:].rstrip("\t").removeprefix("./"), []))
            elif found and start is not None:
                first = int(start["first"])
                found[-1][1].append((first, first + int(start["count"] or 1) - 1, []))
            elif found and found[-1][1] and at - 1 not in heads:
                found[-1][1][-1][2].append((line[:1] if line[:1] in "+-" else " ", line[1:]))
        return [FileDiff(name, tuple(Hunk(first, last, tuple(kept)) for first, last, kept in hunks)) for name, hunks in found]

    def mends(self, event: Event) -> FileDiff | None:
        """The file's changes if one of them is for this event's line: no other place was said to be without a rule."""
        if event.file is None:
            return None
        for note in self.notes:
            match = _UNKNOWN.fullmatch(note)
            if match is not None and int(match["line"]) == event.line and _same_file(match["path"], event.file):
                return None
        return next((part for part in self.files if _same_file(part.name, event.file)), None)


def _same_file(shown: str, file: str) -> bool:
    return Path(shown).resolve() == Path(file).resolve() or file.replace("\\", "/").endswith("/" + shown.replace("\\", "/"))


def find(folder: Path, events: Sequence[Event]) -> Fixes:
    """The changes that mend these events, kept in `folder` and made again only when the events' places have changed.

    Never raises: a report is written without a diff where none can be made, and says why.
    """
    places = sorted({(event.file, event.line, event.code, event.source) for event in events if event.file is not None})
    digest = hashlib.sha256(repr(places).encode("utf-8", "backslashreplace")).hexdigest()
    kept = _kept(folder / FIXES, digest)
    readable = any(Path(str(file)).is_file() for file, *_ in places)
    if not places or not readable:
        return kept or Fixes(notes=("the source files are not here: no changes were worked out",) if places else ())
    made = _made(folder)
    if kept is not None and kept.diff and not made.diff:
        return kept  # the source has been mended since, or moved on: what was to be changed then is still worth reading
    try:
        text = f"{_PLACES}{digest}\n" + "".join(f"{_NOTE}{note}\n" for note in made.notes) + made.diff
        (folder / FIXES).write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        return Fixes(made.diff, (*made.notes, f"{FIXES} could not be written: {error.strerror}"))
    return made


def _kept(path: Path, digest: str) -> Fixes | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
    except OSError:
        return None
    if not lines or lines[0].strip() != f"{_PLACES}{digest}":
        return None
    notes = [line[len(_NOTE) :].rstrip("\n") for line in lines[1:] if line.startswith(_NOTE)]
    return Fixes("".join(line for line in lines[1:] if not line.startswith(_NOTE)), tuple(notes))


def _made(folder: Path) -> Fixes:
    command = [sys.executable, "-P", "-c", _PROGRAM, _HOME, "diff", "--from-report", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return Fixes(notes=(f"no changes could be worked out: {type(error).__name__}: {error}",))
    notes = _notes(done.stderr.decode("utf-8", "replace").splitlines())
    if done.returncode != 0:
        return Fixes(notes=(f"no changes could be worked out: {'; '.join(notes) or f'exit status {done.returncode}'}",))
    return Fixes(done.stdout.decode("utf-8", "surrogateescape"), tuple(notes))


def _notes(lines: Iterable[str]) -> list[str]:
    """What `patches` said, without its closing count; the last line of a traceback stands for it."""
    said = [line for line in lines if line.strip()]
    if any(line.startswith("Traceback") for line in said):
        return said[-1:]
    return [line for line in said if not re.match(r"\d+ fixes, \d+ of", line)]
