"""Adds the figures that the database tests record to the end of the test run's report."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

_PREFIX = "no harm: "


@pytest.fixture
def record_figures(record_property: Any) -> Any:
    """Record counts under a heading; they are summed over tests and processes."""

    def record(heading: str, **counts: int) -> None:
        for name, count in counts.items():
            record_property(f"{_PREFIX}{heading}: {name.replace('_', ' ')}", count)

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a heading."""
    totals: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for name, count in getattr(report, "user_properties", ()):
            if name.startswith(_PREFIX) and report.when == "call":
                totals[name.removeprefix(_PREFIX)] += count
    headings: dict[str, list[str]] = {}
    for name, count in totals.items():
        heading, _, what = name.partition(": ")
        headings.setdefault(heading, []).append(f"{count} {what}")
    if headings:
        terminalreporter.section("no harm: what was compared")
        for heading, counts in headings.items():
            terminalreporter.write_line(f"{heading}: {', '.join(counts)}")
