"""python -m tests.benchmarks [NAME ...] [--json FILE]: measure, print a table, write JSON. Exit status 1 if a bar does not hold."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tests.benchmarks as package
from tests.benchmarks.harness import Row, machine


def available() -> list[str]:
    """Modules of this folder that have a `rows()`."""
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return [n for n in names if "\ndef rows(" in (Path(package.__path__[0]) / f"{n}.py").read_text(encoding="utf-8")]


def main() -> int:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(available())} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(available())
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; there are: {', '.join(available())}")
    rows: list[Row] = []
    for name in arguments.names or available():
        rows += importlib.import_module(f"tests.benchmarks.{name}").rows()
    table = Table("area", "work", "median", "quartiles", "pairs", "bar", "holds", "note", title=str(machine()))
    for row in rows:
        bar = "" if row.bar is None else f"{'>=' if row.at_least else '<='} {row.bar:g}"
        held = {True: "yes", False: "NO", None: ""}[row.holds]
        cells = (row.area, row.name, f"{row.ratio:.3f} {row.unit}", f"{row.low:.3f}-{row.high:.3f}", str(row.pairs), bar, held, row.note)
        table.add_row(*cells)
    Console(width=180).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": [r.as_dict() for r in rows]}, indent=2) + "\n", encoding="utf-8")
    return 1 if any(row.holds is False for row in rows) else 0


sys.exit(main())
