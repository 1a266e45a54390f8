"""The events of an `instrument` run, as lines of source: only what fired is to be mended.

An event names a file, a line and, since files change, the text of that line. A line whose text is no
longer there is looked for; it is used only if exactly one line of the file has that text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path, PurePath

from patches.engine import Diagnostic
from patches.errors import ReportError
from patches.source import Source

EVENTS = "events.jsonl"


@dataclass(frozen=True, slots=True)
class Firing:
    """One place that fired: the code at run time, the line and its text then, how often."""

    code: str
    file: str
    line: int
    source: str | None
    count: int = 1


@dataclass(slots=True)
class Located:
    """The firings of one file on its present text: line to codes, and what could not be placed."""

    lines: dict[int, set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_firings(folder: Path) -> list[Firing]:
    """The located events of a run, one for each code, file and line.

    Raises:
        ReportError: no events.jsonl there, or a line of it is not an event.
    """
    path = folder / EVENTS if folder.is_dir() else folder
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}; run `python -m instrument run --report {folder} SCRIPT` first") from error
    merged: dict[tuple[str, str, int], Firing] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            raise ReportError(f"{path}:{number}: not a JSON object: {error}") from error
        if not isinstance(event, dict):
            raise ReportError(f"{path}:{number}: expected an object, got {type(event).__name__}")
        code, file, at = event.get("code"), event.get("file"), event.get("line")
        if not isinstance(code, str) or not isinstance(file, str) or not isinstance(at, int):
            continue  # an event without a place in the user's source: nothing to mend
        excerpt = event.get("source")
        count = event.get("count", 1)
        key = (code, file, at)
        before = merged[key].count if key in merged else 0
        merged[key] = Firing(code, file, at, excerpt if isinstance(excerpt, str) else None, before + (count if isinstance(count, int) else 1))
    return list(merged.values())


def assign_files(firings: Sequence[Firing], files: Sequence[Path]) -> tuple[dict[Path, list[Firing]], list[str]]:
    """Each firing to the file it was in: the same path, else the one file whose path ends alike; and notes on those left over."""
    resolved = {path.resolve(): path for path in files}
    found: dict[Path, list[Firing]] = {}
    notes: list[str] = []
    for firing in firings:
        exact = resolved.get(Path(firing.file).resolve())
        if exact is None:
            exact, note = _same_tail(firing, list(resolved), resolved)
            if note:
                notes.append(note)
        if exact is not None:
            found.setdefault(exact, []).append(firing)
    return found, list(dict.fromkeys(notes))


def _same_tail(firing: Firing, candidates: Sequence[Path], resolved: dict[Path, Path]) -> tuple[Path | None, str]:
    if Path(firing.file).exists():
        return None, ""  # another file, which was not asked about
    wanted = PurePath(firing.file.replace("\\", "/")).parts

    def shared(path: Path) -> int:
        count = 0
        for a, b in zip(reversed(wanted), reversed(path.parts), strict=False):
            if a != b:
                break
            count += 1
        return count

    best = max((shared(path) for path in candidates), default=0)
    tied = [path for path in candidates if shared(path) == best]
    if best == 0:
        return None, ""
    if len(tied) > 1:
        return None, f"{firing.file}:{firing.line}: several files could be meant ({', '.join(str(resolved[p]) for p in tied)}); name one"
    return resolved[tied[0]], ""


def place(firings: Sequence[Firing], text: str, path: str) -> Located:
    """The firings of one file on its present lines. Lines that moved are followed only if their text is unique."""
    located = Located()
    lines = text.splitlines()
    stripped = [line.strip() for line in lines]
    for firing in firings:
        here = stripped[firing.line - 1] if 0 < firing.line <= len(lines) else None
        if firing.source is None or firing.source.strip() == here:
            if here is None:
                located.notes.append(f"{path}:{firing.line}: {firing.code} fired there, but the file has {len(lines)} lines now; run it again")
            else:
                located.lines.setdefault(firing.line, set()).add(firing.code)
            continue
        found = [number for number, line in enumerate(stripped, 1) if line == firing.source.strip()]
        if len(found) == 1:
            located.notes.append(f"{path}:{firing.line}: {firing.code} fired there; the line is line {found[0]} now")
            located.lines.setdefault(found[0], set()).add(firing.code)
        else:
            what = "is gone" if not found else f"is now at lines {', '.join(map(str, found))}"
            located.notes.append(f"{path}:{firing.line}: {firing.code} fired at `{firing.source.strip()}`, which {what}; left alone, run it again")
    located.notes = list(dict.fromkeys(located.notes))
    return located


class FiredOnly:
    """Keeps the findings at lines that fired, also in later passes, when fixes have moved those lines."""

    def __init__(self, located: Located, original: str) -> None:
        self.lines = located.lines
        self.original = original.splitlines()
        self.matched: set[int] = set()
        self.stable: set[int] = set()  # lines for which a stable form was found, in this pass or an earlier one

    def __call__(self, source: Source, diagnostics: Sequence[Diagnostic]) -> list[Diagnostic]:
        kept: dict[int, Diagnostic] = {}
        fired = self._lines_in(source.text)
        for line, (codes, origin) in fired.items():
            here = [(index, d) for index, d in enumerate(diagnostics) if line in d.firing_lines]
            same_code = [(index, d) for index, d in here if d.code in codes]
            if any(d.splices and not d.last_resort for _, d in here):
                self.stable.add(origin)
            chosen = same_code or here
            if origin in self.stable:  # better than a bound on whatever failed there
                chosen = [(index, d) for index, d in chosen if not d.last_resort] or [(index, d) for index, d in here if not d.last_resort]
            if chosen:
                self.matched.add(origin)
            kept.update(dict(chosen))
        return [kept[index] for index in sorted(kept)]

    def _lines_in(self, text: str) -> dict[int, tuple[set[str], int]]:
        present = text.splitlines()
        if present == self.original:
            return {line: (codes, line) for line, codes in self.lines.items()}
        found: dict[int, tuple[set[str], int]] = {}
        for tag, start, end, new_start, new_end in SequenceMatcher(None, self.original, present, autojunk=False).get_opcodes():
            for line, codes in self.lines.items():
                if start < line <= end:
                    targets = [line - start + new_start] if tag == "equal" else range(new_start + 1, new_end + 1)
                    found.update({target: (codes, line) for target in targets})
        return found

    def unmatched(self) -> list[tuple[int, set[str]]]:
        """Lines that fired and at which no rule found anything."""
        return [(line, codes) for line, codes in sorted(self.lines.items()) if line not in self.matched]
