"""The live view: at the foot of a terminal, as lines without one, never on standard output."""

import io
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys

import pytest

import instrument
from instrument.history import StepRecord
from instrument.report import live
from tests.instrument.report.recorded import event
from tests.instrument.report.test_folder import train


def record(step, norm=1.0):
    return StepRecord(step, 0.5, norm, 1e-3, "stepped", float(step))


def test_bars_rise_with_the_logarithm_and_show_what_is_not_a_number():
    assert live.sparkline([1e-3, 1.0, 1e3, None, math.nan, 0.0], 10) == "▁▅█ x▁"
    assert live.sparkline([1.0] * 5, 3) == "▁▁▁"
    assert live.sparkline([], 5) == ""
    assert len(live.sparkline(range(1, 100), 20)) == 20


def test_without_a_terminal_a_line_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    lines = live.Lines(stream)
    for step in range(1, 41):
        now[0] += 0.5
        if step == 30:
            lines.event(event(file="/x/" + "long/" * 40 + "train.py"))
        lines.step(record(step))
    lines.close()
    written = stream.getvalue().splitlines()
    assert [int(re.search(r"step (\d+)", line)[1]) for line in written] == [1, 21, 30, 40]
    assert "nothing had to be done" in written[1]
    assert "/x/" + "long/" * 40 + "train.py:48 NS401 mask-neg-inf" in written[2], "a place is whole"
    assert "5 repaired" in written[3]


def test_a_run_is_followed_on_the_stream_it_was_given():
    stream = io.StringIO()
    with instrument.stable(profile="guard") as run:
        live.follow(run, stream)
        train(6, bad=(2,))
    assert stream.getvalue().splitlines()[-1].startswith("latent-drift: step 6,")
    assert "1 skipped" in stream.getvalue()


def test_of_several_processes_only_the_first_shows_itself(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = io.StringIO()
    with instrument.stable() as run:
        live.follow(run, stream)
        train(3, ())
    assert stream.getvalue() == ""


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_the_rows_at_the_foot_fit_the_terminal(columns):
    foot = live.Foot(io.StringIO())
    for step in range(300):
        foot._following.step(record(step, math.inf if step == 5 else 10.0**-step))
    foot.event(event(file="/somewhere/" * 30 + "train.py"))
    rows = [re.sub(r"\033\[[\d;]*m", "", row) for row in foot.lines(columns)]
    assert len(rows) == 5
    assert all(len(row) <= columns for row in rows)
    assert "step" in rows[1]
    assert "5 repaired" in rows[3]


SCRIPT = """
import sys, torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(30):
    optimizer.zero_grad()
    loss = model(torch.ones(4, 2)).mean() * (float("nan") if step == 12 else 1.0)
    loss.backward()
    optimizer.step()
    print(f"line {step}", flush=True)
"""


def _run_on_a_terminal(folder, rows, columns):
    """Standard error on a terminal of this size, standard output in a pipe; returns both and the status."""
    import fcntl
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "instrument", "run", "--live", "train.py"], cwd=folder, stdout=subprocess.PIPE, stderr=follower, env=environment
    )
    os.close(follower)
    parts = {leader: b"", process.stdout.fileno(): b""}
    open_ends = set(parts)
    while open_ends:
        for end in select.select(list(open_ends), [], [], 200)[0]:
            try:
                data = os.read(end, 65536)
            except OSError:  # the terminal's other end is closed
                data = b""
            if not data:
                open_ends.discard(end)
            parts[end] += data
    os.close(leader)
    status = process.wait(60)
    process.stdout.close()
    return parts[leader].decode(), parts[next(k for k in parts if k != leader)].decode(), status


@pytest.mark.skipif(os.name != "posix", reason="terminals are made by pty")
def test_on_a_terminal_the_script_keeps_its_output_and_the_terminal_its_rows(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    terminal, output, status = _run_on_a_terminal(tmp_path, rows=30, columns=40)
    assert status == 0
    assert output == "".join(f"line {step}\n" for step in range(30)), "byte for byte the script's own"
    assert "\033[1;25r" in terminal, "the last five of thirty rows are set apart"
    assert terminal.rindex("\033[r") > terminal.rindex("\033[1;25r"), "and given back"
    assert "loss" in terminal
    table = terminal[terminal.rindex("\033[r") :]
    lines = table.splitlines()
    assert "train.py:9" in lines, "the table at the end comes after, stacked, with its places whole"
    assert "  NS506 nonfinite-gradient" in lines
    source = {line.strip() for line in SCRIPT.splitlines()}
    assert max(len(line) for line in lines[1:] if "|" not in line and line.strip() not in source) <= 40
