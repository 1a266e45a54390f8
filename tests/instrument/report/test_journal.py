"""A process that is killed leaves the report of what it had done until then."""

import json
import math
import signal
import subprocess
import sys

import pytest

import instrument
from instrument.report import folder as report_folder
from instrument.report import journal
from tests.instrument.report.test_folder import train

SCRIPT = """
import os, signal, sys, torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(5):
    optimizer.zero_grad()
    loss = torch.exp(model(torch.ones(4, 2))).mean() * (float("nan") if step == 2 else 1.0)
    loss.backward()
    optimizer.step()
print("trained", flush=True)
os.kill(os.getpid(), signal.{how})
signal.pause()
"""


def test_a_new_event_is_written_at_once_and_the_rest_in_time(tmp_path, monkeypatch):
    seen = []

    def look(record):
        found = report_folder.read(tmp_path) if (tmp_path / "events.jsonl").exists() else None
        seen.append((record.step, None if found is None else found.facts["steps"]))

    with instrument.stable(profile="guard") as run:
        journal.Journal(run, tmp_path)
        run.subscribe(on_step=look)
        train(8, bad=(3,))
    assert seen[:3] == [(1, None), (2, None), (3, None)], "nothing has happened and two seconds have not passed"
    assert seen[3] == (4, 4), "a new event"
    assert seen[4] == (5, 5), "its line is known now"
    assert seen[5] == (6, 5), "not at every step"
    assert report_folder.read(tmp_path).facts["state"] == "running"
    monkeypatch.setattr(journal, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(journal, "SHARE", math.inf)
    with instrument.stable(profile="guard") as run:
        journal.Journal(run, tmp_path)
        assert not (tmp_path / "events.jsonl").exists(), "what an earlier run left is not shown as this one's"
        train(8, bad=())
    assert report_folder.read(tmp_path).facts["steps"] == 8


def test_writing_takes_a_bounded_share_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    writes = []
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])

    def slow(run, folder):
        writes.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(report_folder, "save_recording", slow)
    with instrument.stable() as run:
        written = journal.Journal(run, tmp_path)
        for _ in range(2000):
            now[0] += 1.0
            written.after_step(None)
    assert len(writes) == pytest.approx(2000 / 200, abs=3), "beyond the grace, a second's writing is paid for by two hundred of training"


def test_a_folder_that_cannot_be_written_any_more_does_not_stop_training(tmp_path, monkeypatch, caplog):
    def full(run, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_folder, "save_recording", full)
    with instrument.stable(profile="guard") as run:
        journal.Journal(run, tmp_path)
        train(6, bad=(2,))
    assert run.tally.steps == 6
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("how", "state"), [("SIGKILL", "running"), ("SIGTERM", "was ended from outside (SIGTERM)")])
def test_a_process_that_is_killed_leaves_its_report(tmp_path, how, state):
    (tmp_path / "train.py").write_text(SCRIPT.format(how=how))
    command = [sys.executable, "-m", "instrument", "run", "--report", "out", "train.py"]
    killed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert killed.returncode == -getattr(signal, how), killed.stderr
    assert killed.stdout == "trained\n"
    report = report_folder.rebuild(tmp_path / "out")
    assert report.facts["state"] == state
    assert {"NS506"} <= {event.code for event in report.events}
    assert report.recordings[0].timeline[2].outcome == "skipped"
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["script"] == "train.py"
