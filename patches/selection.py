"""Which rules are on: the rule set's defaults, narrowed or widened by codes, prefixes and per-file ignores."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import PurePath

from patches.errors import PatchesUsageError
from patches.findings import FINDINGS
from patches.settings import AUDIT, AUDIT_CODES, Settings


def matches(code: str, patterns: Iterable[str]) -> bool:
    """Whether a code is covered by one of the codes, names or prefixes (`NS2`, `NS201`, `exp-logvar`, `AUDIT`, `ALL`)."""
    for pattern in patterns:
        if pattern == AUDIT:
            if code in AUDIT_CODES:
                return True
        elif pattern == "ALL" or code.startswith(pattern) or (code in FINDINGS and FINDINGS[code].name == pattern):
            return True
    return False


def validate(patterns: Iterable[str], where: str) -> None:
    """Refuses codes that no finding has.

    Raises:
        PatchesUsageError: the unknown code, what is close to it, and where it was given.
    """
    for pattern in patterns:
        known = pattern in (AUDIT, "ALL") or any(code.startswith(pattern) or finding.name == pattern for code, finding in FINDINGS.items())
        if not known or not pattern:
            from difflib import get_close_matches

            near = get_close_matches(pattern, [*FINDINGS, *(f.name for f in FINDINGS.values()), AUDIT, "ALL"], n=3)
            raise PatchesUsageError(f"{where}: no finding has code or prefix {pattern!r}; closest: {', '.join(near) or 'none'}; see `patches list`")


def is_on(code: str, default: bool, settings: Settings) -> bool:
    """Whether a rule is on. A longer code beats a shorter one; at equal length `ignore` beats `select`."""
    if settings.select:
        on = matches(code, settings.select)
    else:
        on = default
    if not matches(code, settings.ignore):
        return on
    return on and bool(settings.select) and _specificity(code, settings.select) > _specificity(code, settings.ignore)


def _specificity(code: str, patterns: Iterable[str]) -> int:
    lengths = [0]
    for pattern in patterns:
        if matches(code, (pattern,)):
            lengths.append(2 if pattern in (AUDIT, "ALL") else len(code) if not code.startswith(pattern) else len(pattern))
    return max(lengths)


def ignored_in(path: str, settings: Settings) -> tuple[str, ...]:
    """The codes that `per-file-ignores` turns off for this path (patterns match the path, its tail or its name)."""
    pure = PurePath(path)
    found: list[str] = []
    for pattern, codes in settings.per_file_ignores.items():
        if fnmatch(pure.as_posix(), pattern) or fnmatch(pure.name, pattern) or fnmatch(pure.as_posix(), f"*/{pattern}"):
            found.extend(codes)
    return tuple(found)
