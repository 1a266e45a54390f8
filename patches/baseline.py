"""A baseline: the findings that were there when checking began, so that only new ones fail the build.

Entries hold the path, the code and the text of the line, not its number: lines may move freely.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from patches.engine import Diagnostic
from patches.errors import PatchesUsageError

VERSION = 1
Key = tuple[str, str, str]


def _key(diagnostic: Diagnostic) -> Key:
    return Path(diagnostic.path).as_posix(), diagnostic.code, diagnostic.excerpt.strip()


def write(path: Path, diagnostics: Iterable[Diagnostic]) -> int:
    """Writes the findings as the new baseline and returns how many there are."""
    counts = Counter(_key(d) for d in diagnostics)
    entries = [{"path": p, "code": c, "text": t, "count": n} for (p, c, t), n in sorted(counts.items())]
    path.write_text(json.dumps({"version": VERSION, "findings": entries}, indent=1) + "\n", encoding="utf-8")
    return sum(counts.values())


def read(path: Path) -> Counter[Key]:
    """The known findings.

    Raises:
        PatchesUsageError: the file is missing or no baseline of a known version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise PatchesUsageError(f"baseline {path} has version {data['version']!r}; this release reads version {VERSION}; write it anew")
        return Counter({(e["path"], e["code"], e["text"]): int(e["count"]) for e in data["findings"]})
    except OSError as error:
        raise PatchesUsageError(f"cannot read baseline {path}: {error.strerror}; create it with --write-baseline {path}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PatchesUsageError(f"{path} is not a baseline: {error}; create one with --write-baseline {path}") from error


def new_findings(diagnostics: Iterable[Diagnostic], known: Counter[Key]) -> list[Diagnostic]:
    """The findings beyond those known, each known one used once."""
    left = known.copy()
    found = []
    for diagnostic in diagnostics:
        key = _key(diagnostic)
        if left[key] > 0:
            left[key] -= 1
        else:
            found.append(diagnostic)
    return found
