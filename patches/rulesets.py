"""Released rule sets, pinned like configs: a new release of the package does not change what a pinned CI reports.

A set names, for each code, the revision of its rule, whether it is on by default and how far its fix is
trusted. A released file is never edited; a rule whose reports change gets a new revision and a new set.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches.errors import PatchesUsageError
from patches.findings import FINDINGS

if TYPE_CHECKING:
    from patches.rules.base import AbstractRule

FOLDER = Path(__file__).parent / "released"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A released set: its version, and for each code the revision and whether it is on by default."""

    version: str
    revisions: dict[str, int]
    defaults: dict[str, bool]

    def choose(self, rules: tuple[AbstractRule, ...]) -> list[AbstractRule]:
        """The rules of this set, each in its revision.

        Raises:
            PatchesUsageError: this installation lacks a rule that the set names.
        """
        chosen = [rule for rule in rules if self.revisions.get(rule.code) == rule.revision]
        missing = set(self.revisions) - {rule.code for rule in chosen}
        if missing:
            raise PatchesUsageError(f"rule set {self.version} names rules that are not installed: {', '.join(sorted(missing))}")
        return chosen


@cache
def released() -> dict[str, RuleSet]:
    """Every released set by version, oldest first."""
    from packaging.version import Version

    found = {}
    for path in sorted(FOLDER.glob("*.json"), key=lambda p: Version(p.stem)):
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rules = data["rules"]
        found[path.stem] = RuleSet(data["version"], {c: r["revision"] for c, r in rules.items()}, {c: r["default"] for c, r in rules.items()})
    return found


def resolve(specifier: str) -> RuleSet:
    """The newest released set that satisfies a PEP 440 specifier or exact version; the newest of all for an empty one.

    Raises:
        PatchesUsageError: not a specifier, or nothing released satisfies it.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    sets = released()
    if not specifier:
        return next(reversed(sets.values()))
    try:
        wanted = SpecifierSet(f"=={Version(specifier)}")
    except InvalidVersion:
        try:
            wanted = SpecifierSet(specifier)
        except InvalidSpecifier as error:
            raise PatchesUsageError(f"--ruleset {specifier!r} is neither a version nor a PEP 440 specifier such as '~=1.0'") from error
    for version in reversed(sets):
        if wanted.contains(version):
            return sets[version]
    raise PatchesUsageError(f"no released rule set satisfies {specifier!r}; released: {', '.join(sets)}")


def description(version: str, rules: tuple[AbstractRule, ...]) -> str:
    """The text of the file that would release the present rules as `version`."""
    newest: dict[str, AbstractRule] = {}
    for rule in rules:
        if rule.code not in newest or rule.revision > newest[rule.code].revision:
            newest[rule.code] = rule
    entries = {
        code: {"revision": rule.revision, "default": FINDINGS[code].default, "fix": FINDINGS[code].fix} for code, rule in sorted(newest.items())
    }
    body = ",\n".join(f"    {json.dumps(code)}: {json.dumps(entry)}" for code, entry in entries.items())
    return f'{{\n  "version": {json.dumps(version)},\n  "rules": {{\n{body}\n  }}\n}}\n'
