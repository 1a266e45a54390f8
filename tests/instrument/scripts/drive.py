"""Runs legacy-style scripts one after the other in this process, plain or guarded, and prints one JSON line each: for test_failing_scripts.py."""

import contextlib
import io
import itertools
import json
import math
import statistics
import sys
import warnings

import torch
from torch import nn

import instrument
from instrument.runner import run_guarded


def numbers_of(namespace):
    """Whether loss and parameters in a finished script's globals are finite, and the loss."""
    parameters = [v for v in namespace.values() if isinstance(v, torch.Tensor) and v.is_leaf and v.requires_grad]
    for value in namespace.values():
        if isinstance(value, nn.Module):
            parameters += list(value.parameters())
    loss = namespace.get("loss")
    loss = float(loss.detach()) if isinstance(loss, torch.Tensor) else math.nan
    return loss, all(bool(torch.isfinite(p).all()) for p in parameters)


def main():
    profile, paths = sys.argv[1], sys.argv[2:]
    warnings.simplefilter("ignore")
    for path in paths:
        torch.manual_seed(0)
        row = {"path": path, "status": 0, "events": [], "steps": 0}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            if profile == "plain":
                namespace = {"__name__": "__main__", "__file__": path}
                sys.argv = [path]
                try:
                    exec(compile(open(path, encoding="utf-8").read(), path, "exec"), namespace)
                except Exception as error:
                    row["status"] = 1
                    row["error"] = repr(error)[:300]
            else:
                outcome = run_guarded(path, [], instrument.stable(profile=profile))
                namespace = vars(sys.modules["__main__"])
                row["status"] = outcome.status
                row["error"] = errors.getvalue()[-500:]
                cause = outcome.run.first_cause
                row["named"] = None if cause is None else cause.line
                row["cause"] = None if cause is None else json.loads(cause.as_json())
                row["watched"] = outcome.run.search.watch.steps
                times = [record.seconds for record in outcome.run.history]
                row["locating"] = outcome.run.search.seconds
                row["step_seconds"] = statistics.median(b - a for a, b in itertools.pairwise(times)) if len(times) > 1 else None
                row["steps"] = outcome.run.tally.steps
                row["events"] = [[e.code, e.action, e.op, e.line, e.count, e.file] for e in outcome.run.events]
        loss, finite = numbers_of(namespace)
        row["loss"] = repr(loss)
        row["finite"] = finite
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
