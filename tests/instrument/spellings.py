"""python -m tests.instrument.spellings: every guarded spelling by hazard, and the tests that take it as their parameter, as a Markdown table.

The tests are those of tests/instrument/guards that pytest collects, so the table cannot claim one that is not run. A spelling without one is named
below it.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from instrument.guards import OPERATION_GUARDS, AbstractGuard, Spelling, backward


class _Collected:
    """For each spelling the test functions that are parametrized with it."""

    def __init__(self) -> None:
        self.tests: dict[Spelling, set[str]] = defaultdict(set)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            callspec = getattr(item, "callspec", None)
            for value in callspec.params.values() if callspec is not None else ():
                for spelling in value if isinstance(value, tuple) else (value,):
                    if isinstance(spelling, Spelling):
                        self.tests[spelling].add(f"{Path(item.nodeid.partition('::')[0]).name}::{item.originalname}")


def collected() -> dict[Spelling, set[str]]:
    """Collect tests/instrument/guards without running it."""
    plugin = _Collected()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider", str(Path(__file__).parent / "guards")], plugins=[plugin])
    return plugin.tests


def _families() -> list[tuple[str, str, AbstractGuard | None, list[Spelling]]]:
    found = [(g.code, g.finding.name, g, g.spellings()) for g in OPERATION_GUARDS]
    return [*found, (backward.NONFINITE_LOSS, "nonfinite-loss", None, backward.spellings())]


def main() -> None:
    """Print the table."""
    tests = collected()
    lines = ["| finding | guard | operations | spellings | tested by |", "|---|---|---|---|---|"]
    total, untested = 0, []
    for code, name, guard, spellings in _families():
        total += len(spellings)
        by = sorted(set().union(*(tests.get(s, set()) for s in spellings)))
        untested += [s.path for s in spellings if not tests.get(s)]
        operations = ", ".join(dict.fromkeys(s.op for s in spellings))
        title = type(guard).__name__ if guard is not None else "backward"
        lines.append(f"| {code} {name} | {title} | {operations} | {len(spellings)}: {', '.join(s.path for s in spellings)} | {'; '.join(by)} |")
    lines += ["", f"{total} spellings, {len(untested)} without a test that takes them as its parameter: {', '.join(untested) or 'none'}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
