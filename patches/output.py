"""Findings as text, JSON, SARIF 2.1.0 or GitHub workflow commands; fixes as a unified diff."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches.findings import FINDINGS

if TYPE_CHECKING:
    from patches.engine import Diagnostic
    from patches.runner import Failed

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_FIX_WORDS = {"safe": "safe fix", "unsafe": "unsafe fix: --unsafe", "display": "shown only", "none": "no fix"}


def shown_path(path: Path) -> str:
    """A path as it is reported: relative to the working directory where it lies below it, with forward slashes."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix() if path.is_absolute() else Path(os.path.normpath(path)).as_posix()
    except ValueError:
        return path.as_posix()


def fix_kind(diagnostic: Diagnostic) -> str:
    """How the finding can be mended here: `safe`, `unsafe` or `display`."""
    return diagnostic.safety if diagnostic.splices else "display"


def _place(diagnostic: Diagnostic) -> str:
    cell = f"cell {diagnostic.cell}:" if diagnostic.cell is not None else ""
    return f"{diagnostic.path}:{cell}{diagnostic.line}:{diagnostic.column}"


def as_text(diagnostics: Iterable[Diagnostic]) -> str:
    """One line a finding."""
    lines = [f"{_place(d)}: {d.code} {d.name} [{_FIX_WORDS[fix_kind(d)]}] {d.message}" for d in diagnostics]
    return "".join(f"{line}\n" for line in lines)


def summary(diagnostics: Sequence[Diagnostic], files: int, failed: int) -> str:
    """One sentence: how many findings, how many of them `apply` would mend."""
    trouble = f"; {failed} could not be read" if failed else ""
    counted = f"{files} file{'' if files == 1 else 's'}"
    if not diagnostics:
        return f"{counted}, no findings{trouble}"
    kinds = [fix_kind(d) for d in diagnostics]
    safe, unsafe, display = (kinds.count(kind) for kind in ("safe", "unsafe", "display"))
    return f"{counted}, {len(kinds)} findings: {safe} with a safe fix, {unsafe} with an unsafe one (--unsafe), {display} shown only{trouble}"


def as_json(diagnostics: Iterable[Diagnostic]) -> str:
    """A list of objects: path, line, column, code, name, message, fix (safe, unsafe or display), and the end of the place."""
    found: list[dict[str, Any]] = []
    for d in diagnostics:
        entry: dict[str, Any] = {
            "path": d.path,
            "line": d.line,
            "column": d.column,
            "end_line": d.end_line,
            "end_column": d.end_column,
            "code": d.code,
            "name": d.name,
            "message": d.message,
            "fix": fix_kind(d),
        }
        if d.cell is not None:
            entry["cell"] = d.cell
        found.append(entry)
    return json.dumps(found, indent=2) + "\n"


def as_github(diagnostics: Iterable[Diagnostic]) -> str:
    """GitHub workflow commands: one warning a finding, shown at its line of a pull request."""

    def data(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    def prop(text: str) -> str:
        return data(text).replace(":", "%3A").replace(",", "%2C")

    lines = []
    for d in diagnostics:
        place = f"file={prop(d.path)},line={d.line},endLine={d.end_line},col={d.column},endColumn={d.end_column}"
        lines.append(f"::warning {place},title={prop(f'{d.code} {d.name}')}::{data(d.message)}")
    return "".join(f"{line}\n" for line in lines)


def as_sarif(diagnostics: Sequence[Diagnostic], failures: Sequence[Failed], version: str) -> str:
    """A SARIF 2.1.0 log: the rules that occur, a result a finding, a notification a file that could not be read."""
    codes = sorted({d.code for d in diagnostics})
    rules = [
        {
            "id": code,
            "name": "".join(part.capitalize() for part in FINDINGS[code].name.split("-")),
            "shortDescription": {"text": FINDINGS[code].summary},
            "fullDescription": {"text": f"{FINDINGS[code].summary}; {FINDINGS[code].remedy}"},
            "help": {"text": f"python -m patches explain {code}"},
            "properties": {"fix": FINDINGS[code].fix},
        }
        for code in codes
    ]
    results = [
        {
            "ruleId": d.code,
            "ruleIndex": codes.index(d.code),
            "level": "warning",
            "message": {"text": d.message},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": _uri(d.path)},
                        "region": {"startLine": d.line, "startColumn": d.column, "endLine": d.end_line, "endColumn": d.end_column},
                    }
                }
            ],
            "properties": {"fix": fix_kind(d), **({"cell": d.cell} if d.cell is not None else {})},
        }
        for d in diagnostics
    ]
    notifications = [
        {
            "level": "error",
            "message": {"text": f.reason},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": _uri(f.path)},
                        "region": {"startLine": max(f.line, 1), "startColumn": max(f.column, 1)},
                    }
                }
            ],
        }
        for f in failures
    ]
    log = {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "latent-drift patches", "version": version, "rules": rules}},
                "columnKind": "unicodeCodePoints",
                "invocations": [{"executionSuccessful": not failures, "toolExecutionNotifications": notifications}],
                "results": results,
            }
        ],
    }
    return json.dumps(log, indent=2) + "\n"


def _uri(path: str) -> str:
    from urllib.parse import quote

    return Path(path).as_uri() if Path(path).is_absolute() else quote(path)


def unified_diff(path: str, before: bytes, after: bytes) -> bytes:
    """A unified diff that both `patch -p0` and `git apply` take, byte for byte in the file's own encoding.

    Names start with `./`: `patch -p0` takes them as they are, and the one component that `git apply`
    strips by default is the dot. A name with a space is ended by a tab, as both expect.
    """
    name = path if path.startswith(("/", "./", "../")) else f"./{path}"
    header = name.encode() + (b"\t" if " " in name else b"")
    old, new = _lines(before), _lines(after)
    pieces: list[bytes] = []
    for line in difflib.diff_bytes(difflib.unified_diff, old, new, header, header, lineterm=b"\n"):
        pieces.append(line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n")
    return b"".join(pieces)


def _lines(content: bytes) -> list[bytes]:
    """Lines by line feeds only: what patch and git take for a line."""
    parts = content.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines
