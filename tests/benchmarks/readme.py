"""python -m tests.benchmarks.readme [--check]: README's table of benchmarks, from the JSON in tests/benchmarks/results/.

The figures stand in README between two marker lines; nobody types them. Measure, then write the table:

    python -m tests.benchmarks instrument_cost --json tests/benchmarks/results/instrument_cost.json
    python -m tests.benchmarks.readme
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Row

BEGIN, END = "<!-- benchmarks:begin (python -m tests.benchmarks.readme) -->", "<!-- benchmarks:end -->"
ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = Path(__file__).with_name("results")


def read_results(folder: Path) -> list[tuple[Mapping[str, Any], list[Row]]]:
    """Machine and rows of every JSON file of a folder, in the order of their names."""
    found = []
    names = {field.name for field in fields(Row)}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        found.append((document["machine"], [Row(**{key: value for key, value in row.items() if key in names}) for row in document["rows"]]))
    return found


def table(results: Sequence[tuple[Mapping[str, Any], Sequence[Row]]]) -> str:
    """The block as it stands in README: a table for each area and machine, then what it was measured on. Without a result, nothing."""
    parts = []
    for machine, rows in _by_area(results):
        lines = ["| work | measured | quartiles | bar | |", "|---|---|---|---|---|"]
        lines += [_line(row) for row in rows]
        about = f"torch {machine['torch']}, {machine['threads']} thread{'' if machine['threads'] == 1 else 's'}, {machine['processor']}"
        parts.append(f"**{rows[0].area}** ({about}; medians of {_span(row.pairs for row in rows)} interleaved pairs)\n\n" + "\n".join(lines))
    missed = sum(row.holds is False for _, rows in results for row in rows)
    barred = sum(row.holds is not None for _, rows in results for row in rows)
    if parts:
        parts.append(f"{barred - missed} of {barred} bars hold." + (" What does not is marked." if missed else ""))
    return "\n\n".join(parts)


def _by_area(results: Sequence[tuple[Mapping[str, Any], Sequence[Row]]]) -> Iterable[tuple[Mapping[str, Any], list[Row]]]:
    for machine, rows in results:
        for area in dict.fromkeys(row.area for row in rows):
            yield machine, [row for row in rows if row.area == area]


def _span(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _line(row: Row) -> str:
    bar = "" if row.bar is None else f"{'at least' if row.at_least else 'at most'} {row.bar:,g} {_unit(row)}".rstrip()
    verdict = {True: "holds", False: "**not reached**", None: ""}[row.holds]
    name = row.name + (f" ({row.note})" if row.note else "")
    return f"| {_cell(name)} | {_number(row.ratio)} {_unit(row)} | {_number(row.low)} to {_number(row.high)} | {bar} | {verdict} |"


def _unit(row: Row) -> str:
    return "times" if row.unit == "x" else row.unit


def _number(value: float) -> str:
    """Three significant digits, the last ones kept though they are 0."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".removesuffix(".")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def filled(readme: str, block: str) -> str:
    """README with the block between its markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README.md has to hold the lines {BEGIN!r} and {END!r} once each, in this order")
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{block}\n\n{END}{tail}"


def main() -> int:
    """Write the table, or with --check only compare. Exit status 1 if README differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.readme", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md does not agree with the results")
    arguments = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = filled(before, table(read_results(RESULTS)))
    if arguments.check:
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
