"""Fixtures on disk: discovery, settings and the declaration of how each is executed.

    fixtures/NS101/direct.before.py      what a file looks like
    fixtures/NS101/direct.after.py       what apply makes of it
    fixtures/NS101/direct.toml           settings and the grid on which both are executed (optional parts below)
    fixtures/NS101/near.untouched.py     near-misses: no finding of this code, no change
    fixtures/NS404/lost.display.py       findings without a written fix: exactly the lines that end in `# NS404`

The TOML file:

    [settings]                  # fields of patches.settings.Settings; `unsafe = true` for unsafe fixes
    not_executed = "reason"     # for what cannot run on a CPU without data; otherwise cases are required
    [[case]]
    call = "f"                  # an expression evaluated in the module's namespace; called with the inputs
    cures = "value"             # what must be non-finite before and finite after at some point: value, gradient,
                                # accuracy (somewhere strictly closer to the reference) or nothing
    expect = "equal"            # equal (to rounding wherever before was finite) or finite (only finite after)
    dtypes = ["float32"]        # default: all four
    max_ulp = 4                 # of the value; gradients get four times as much
    floor = 1.0                 # ulps are those of at least this size: for values that are sums which cancel
    reference = "mp.log1p(x)"   # optional: mpmath, of one element x; with row = true of a list x, giving a list
    [case.inputs]
    x = { values = [0.0, 1.0] } or { rows = [[...], [...]] } or { normal = [4, 5], scale = [0.1, 1.0, 100.0] }
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patches.settings import Settings

ROOT = Path(__file__).parent / "fixtures"
KINDS = ("before", "untouched", "display")


@dataclass(frozen=True)
class Fixture:
    """One fixture: the code of its rule, its kind and its text."""

    code: str
    slug: str
    kind: str
    path: Path
    declaration: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def after(self) -> str:
        return self.path.with_name(f"{self.slug}.after.py").read_text()

    @property
    def settings(self) -> Settings:
        given = dict(self.declaration.get("settings", {}))
        if "target_torch" in given:
            given["target_torch"] = tuple(given["target_torch"])
        return Settings(**given)

    @property
    def cases(self) -> list[dict[str, Any]]:
        return list(self.declaration.get("case", []))

    def __str__(self) -> str:
        return f"{self.code}-{self.slug}-{self.kind}"


def fixtures(*kinds: str) -> list[Fixture]:
    """Every fixture of these kinds (all, if none are named), sorted by name."""
    found: list[Fixture] = []
    for path in sorted(ROOT.glob("NS*/*.py")):
        slug, kind = path.name.removesuffix(".py").rsplit(".", 1)
        if kind == "after":
            assert path.with_name(f"{slug}.before.py").exists(), f"{path} has no before"
            continue
        assert kind in KINDS, f"{path}: the kind is one of {KINDS}, got {kind!r}"
        declared = path.with_name(f"{slug}.toml")
        declaration = tomllib.loads(declared.read_text()) if declared.exists() else {}
        if not kinds or kind in kinds:
            found.append(Fixture(path.parent.name, slug, kind, path, declaration))
    return found
