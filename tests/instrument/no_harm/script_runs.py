"""Runs scripts one after another in this process, plain or guarded, and writes down what each printed: start-up is paid once, not fifty times.

    python -m tests.instrument.no_harm.script_runs RESULT.json SETTING SCRIPT...

SETTING is `plain` (nothing of ours is imported), or the keyword arguments of `instrument.stable` as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any


def run_plain(script: str) -> dict[str, Any]:
    """Run as `python script` does."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(script, run_name="__main__")
    return {"printed": printed.getvalue(), "status": 0, "events": [], "steps": 0}


def run_guarded(script: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run as `python -m instrument run script` does."""
    from instrument.runner import run_guarded as run
    from instrument.session import stable

    printed = io.StringIO()
    argv, path, main = list(sys.argv), list(sys.path), sys.modules["__main__"]
    try:
        with contextlib.redirect_stdout(printed):
            outcome = run(script, [], stable("1.0.0", **settings))
    finally:
        sys.argv[:], sys.path[:], sys.modules["__main__"] = argv, path, main
    events = [[e.code, e.action, e.op, e.line, e.message] for e in outcome.run.events]
    return {"printed": printed.getvalue(), "status": outcome.status, "events": events, "steps": outcome.run.tally.steps}


def main(result: str, setting: str, *scripts: str) -> None:
    """Run all, write one JSON object by script name."""
    warnings.simplefilter("ignore")
    results = {}
    for script in scripts:
        results[Path(script).name] = run_plain(script) if setting == "plain" else run_guarded(script, json.loads(setting))
    if setting == "plain":
        assert "instrument" not in sys.modules
    Path(result).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
