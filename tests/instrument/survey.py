"""What becomes of the failing scripts under each policy: survived, learning, crashed, by kind.

python -m tests.instrument.survey [POLICY ...] [--json FILE] [SCRIPTS...]

A script *survives* that ends with status 0, a finite last loss and finite parameters. It *learns* if the mean of the last quarter of its losses
lies below that of its first quarter by more than a twentieth of it. It *crashed* if it ended by an exception; giving up (status 3) counts as that.
The kind of a script is the family of the finding that `train` names as its first cause.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import statistics
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import instrument
from instrument.runner import run_guarded
from patches.findings import FAMILIES, FINDINGS
from tests.instrument.scripts.drive import numbers_of

FAILING = Path(__file__).parent / "scripts" / "failing"
MARGIN = 0.05

POLICIES: dict[str, dict[str, Any]] = {
    "guard": {"profile": "guard"},
    "train": {"profile": "train"},
    "zero": {"profile": "train", "gradient": {"nonfinite": "zero"}},
    "rollback": {"profile": "train", "recovery": {"rollback": True, "snapshot_every": 5, "rollback_after": 2, "lr_recovery_steps": 20}},
}


def learning(losses: list[float]) -> bool:
    """Whether the end of these losses lies clearly below their beginning."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    quarter = max(1, len(finite) // 4)
    if len(finite) < 2:
        return False
    first, last = statistics.fmean(finite[:quarter]), statistics.fmean(finite[-quarter:])
    return last < first - MARGIN * abs(first)


def run_script(path: Path, policy: str) -> dict[str, Any]:
    """One script in this process, guarded as `policy` says."""
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = run_guarded(str(path), [], instrument.stable(**POLICIES[policy]))
    loss, finite = numbers_of(vars(sys.modules["__main__"]))
    cause = outcome.run.first_cause
    losses = [record.loss for record in outcome.run.history if record.loss is not None]
    return {
        "script": path.stem,
        "policy": policy,
        "survived": outcome.status == 0 and finite and math.isfinite(loss),
        "learning": learning(losses),
        "crashed": outcome.status != 0,
        "parameters finite": finite,
        "family": 0 if cause is None else FINDINGS[cause.code].family,
        "losses": [repr(losses[0]), repr(losses[-1])] if losses else [],
        "skipped": outcome.run.tally.skipped,
        "steps": outcome.run.tally.steps,
        "rolled back": outcome.run.tally.rolled_back,
    }


def survey(policy: str, paths: list[Path]) -> list[dict[str, Any]]:
    """All scripts under one policy, in a process of their own."""
    command = [sys.executable, "-m", "tests.instrument.survey", "--worker", policy, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"the worker for {policy} failed:\n{result.stderr}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Counts by kind and policy, then what did not survive or learn, by name."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    kinds = {row["script"]: row["family"] for row in rows if row["policy"] == ("train" if "train" in policies else policies[0])}
    lines = [f"{'kind':<40}" + "".join(f"{p:>22}" for p in policies), f"{'(survived / learning / crashed of all)':<40}"]
    for family in [*sorted(set(kinds.values())), None]:
        cells = []
        for policy in policies:
            part = [r for r in rows if r["policy"] == policy and (family is None or kinds[r["script"]] == family)]
            count = Counter({key: sum(bool(r[key]) for r in part) for key in ("survived", "learning", "crashed")})
            cells.append(f"{count['survived']} / {count['learning']} / {count['crashed']} of {len(part)}")
        name = "all" if family is None else f"{family} {FAMILIES[family]}"
        lines.append(f"{name:<40}" + "".join(f"{cell:>22}" for cell in cells))
    for row in rows:
        if not row["survived"] or not row["learning"]:
            state = "survived, not learning" if row["survived"] else "crashed" if row["crashed"] else "ended not finite"
            done = f"{row['skipped']} of {row['steps']} skipped, {row['rolled back']} rolled back"
            lines.append(f"  {row['policy']:<9} {row['script']:<28} {state}: loss {' -> '.join(row['losses'])}; {done}")
    return "\n".join(lines)


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.instrument.survey", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="POLICY or SCRIPT", help=f"policies ({', '.join(POLICIES)}; default: all) and script files")
    parser.add_argument("--worker", metavar="POLICY", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    paths = [Path(name) for name in arguments.names if name not in POLICIES] or sorted(FAILING.glob("*.py"))
    if arguments.worker:
        for path in paths:
            sys.stdout.write(json.dumps(run_script(path, arguments.worker)) + "\n")
        return 0
    rows = [row for policy in [n for n in arguments.names if n in POLICIES] or POLICIES for row in survey(policy, paths)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
