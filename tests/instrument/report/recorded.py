"""Events, steps and folders made by hand, for the tests of what is shown of them."""

import math
from dataclasses import replace
from pathlib import Path

from instrument.events import Event
from instrument.history import StepRecord
from instrument.layer_norms import LayerTable
from instrument.report import recording
from instrument.report.recording import Recording
from instrument.report.sources import collect
from patches.findings import FINDINGS


def event(code="NS401", file="train.py", line=48, action="repaired", **changes):
    made = Event(
        code=code,
        name=FINDINGS[code].name,
        action=action,
        op="softmax",
        file=file,
        line=line,
        function="forward",
        source="att = F.softmax(score, dim=-1)",
        message="1 of 64 rows have no finite entry; they give zeros",
        step=3,
        count=5,
        last_step=9,
        steps=(3, 5, 9),
        config_version="1.0.0",
        profile="train",
    )
    return replace(made, **changes)


def facts(**changes):
    made = {
        "config": "1.0.0 profile=train",
        "profile": "train",
        "state": "finished",
        "steps": 40,
        "skipped": 1,
        "clipped": 2,
        "interventions": 5,
        "events": 1,
        "events_dropped": 0,
        "intercepted": 251,
        "watched_steps": 0,
        "overrides": {},
        "first_cause": "train.py:48",
        "first_cause_code": "NS401",
    }
    return {**made, **changes}


def steps(count=40, bad=(7,)):
    found = []
    for step in range(1, count + 1):
        wrong = step in bad
        outcome = "skipped" if wrong else "clipped" if step % 20 == 0 else "stepped"
        found.append(StepRecord(step, math.nan if wrong else 2.0 / step, math.inf if wrong else 1.0 / step, 1e-3, outcome, 0.1 * step))
    return tuple(found)


def layers():
    return LayerTable(
        (0, 1, 6, 15), ("inp.weight", "inp.bias", "head.weight"), ((1.0, 0.5, math.nan, 0.1), (0.0, 0.1, 2.0, 0.3), (None, 1e-3, 4.0, 1.0))
    )


def recording_of(events=(), rank=None, **changes):
    events = tuple(replace(e, rank=rank) for e in (events or (event(),)))
    own = facts(**changes) | ({} if rank is None else {"rank": rank})
    return Recording(own, events, steps(), layers(), collect(events), rank)


def write_folder(folder: Path, events=(), rank=None, **changes) -> Path:
    recording.write(recording_of(events, rank, **changes), folder if rank is None else folder / f"rank-{rank}")
    return folder
