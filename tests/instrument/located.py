"""What is located of the failing scripts, by kind, how soon, and with which facts: `python -m tests.instrument.located [FOLDER] [--json FILE]`.

A script is *located* if its first cause is the line that declares `# BIRTH`. The kind is the family of the finding that is named. Watched steps
are those that were looked at operation by operation, at a few times the cost of a plain one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from patches.findings import FAMILIES, FINDINGS

SCRIPTS = Path(__file__).parent / "scripts"


def run_all(paths: list[Path], profile: str = "train") -> list[dict[str, Any]]:
    """One row a script, from a fresh process."""
    command = [sys.executable, str(SCRIPTS / "drive.py"), profile, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def declared(path: Path) -> list[int]:
    """The lines that say `# BIRTH`."""
    return [i for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1) if "# BIRTH" in line]


def main(argv: list[str] | None = None) -> int:
    """Run the scripts of a folder and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.instrument.located", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SCRIPTS / "failing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    rows = run_all(sorted(options.folder.glob("*.py")))
    kinds: dict[str, list[bool]] = defaultdict(list)
    facts: dict[str, int] = defaultdict(int)
    missed = []
    for row in rows:
        path = Path(row["path"])
        found = row["named"] in declared(path)
        cause = row["cause"] or {}
        kinds[FAMILIES[FINDINGS[cause["code"]].family] if cause else "nothing named"].append(found)
        missed += [] if found else [f"{path.name}: declared {declared(path)}, named {row['named']}"]
        for name in ("dtype", "shape", "minimum", "module", "parameters", "trend", "source"):
            facts[name] += found and bool(cause.get(name) or cause.get(name) == 0)
    total = sum(map(sum, kinds.values()))
    for kind, outcomes in sorted(kinds.items()):
        sys.stdout.write(f"{kind:<50} {sum(outcomes):>3} of {len(outcomes):>3}\n")
    sys.stdout.write(f"{'all':<50} {total:>3} of {len(rows):>3}\n")
    sys.stdout.write("facts of the located: " + ", ".join(f"{name} {count}" for name, count in facts.items()) + "\n")
    watched = [row["watched"] for row in rows]
    unwatched = sum(1 for steps in watched if steps == 0)
    sys.stdout.write(f"watched steps: none in {unwatched} scripts, at most {max(watched)} in one\n")
    failed = [row for row in rows if row["locating"] is not None]
    soon = sorted(row["locating"] for row in failed)
    ratios = sorted(row["locating"] / row["step_seconds"] for row in failed if row["step_seconds"])
    if ratios:
        told = f"median {statistics.median(soon) * 1e3:.2f} ms, at most {soon[-1] * 1e3:.0f} ms"
        steps = f"median {statistics.median(ratios):.2g}, at most {ratios[-1]:.0f}"
        sys.stdout.write(f"from a failure to its line, {len(failed)} scripts (the others never failed): {told}; in plain steps: {steps}\n")
    sys.stdout.writelines(f"not located: {line}\n" for line in missed)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
