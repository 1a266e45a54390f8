"""The ready changes: made from the script that ran, kept with the report, and never in the way of it."""

import shutil
import subprocess

import pytest

from instrument.report import fixes
from instrument.report import folder as report_folder
from tests.instrument.report.recorded import event, write_folder

SCRIPT = """import torch
import torch.nn.functional as F


def forward(score, mask):
    score = score.masked_fill(~mask, float("-inf"))
    return F.softmax(score, dim=-1)
"""


@pytest.fixture
def ran(tmp_path):
    """A folder of a run of a script with one finding at a line that a rule knows."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    folder = tmp_path / "out"
    write_folder(folder, [event(file=str(script), line=7, source="return F.softmax(score, dim=-1)")])
    return script, folder


def test_the_page_holds_the_change_and_the_folder_the_diff(ran, tmp_path):
    script, folder = ran
    report_folder.rebuild(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "ready change" in page
    assert "torch.finfo(score.dtype).min" in page
    diff = (folder / "fixes.diff").read_text(encoding="utf-8")
    before = script.read_text()
    if shutil.which("patch") is None:
        pytest.skip("the patch command is not installed")
    patched = subprocess.run(["patch", "-p0", "-i", str(folder / "fixes.diff"), str(script)], capture_output=True, text=True, check=False)
    assert patched.returncode == 0, patched.stdout + patched.stderr + diff
    assert script.read_text() != before
    compile(script.read_text(), "train.py", "exec")


def test_a_report_is_read_where_the_source_is_gone(ran):
    script, folder = ran
    report_folder.rebuild(folder)
    script.unlink()
    report_folder.rebuild(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "torch.finfo(score.dtype).min" in page, "the change that was worked out then"
    assert "masked_fill(~mask" in page, "the source lines that were kept"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda script: script.write_text("def forward(:\n"), "does not parse"),
        (lambda script: script.write_text("x = 1\n"), "is gone"),
        (lambda script: script.unlink(), "not here"),
    ],
    ids=["no longer Python", "another text", "gone"],
)
def test_a_change_that_cannot_be_made_costs_the_report_nothing_else(ran, break_it, said):
    script, folder = ran
    break_it(script)
    report_folder.rebuild(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert said in page
    assert "NS401" in page


def test_a_maker_that_dies_hangs_or_is_not_there_is_told(ran, monkeypatch):
    _, folder = ran
    found = report_folder.read(folder).events
    monkeypatch.setattr(fixes, "_PROGRAM", "raise RuntimeError('planted')")
    assert "planted" in fixes.find(folder, found).notes[0]
    (folder / "fixes.diff").unlink()
    monkeypatch.setattr(fixes, "_PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(fixes, "_SECONDS", 0.5)
    assert "TimeoutExpired" in fixes.find(folder, found).notes[0]
    monkeypatch.setattr(fixes.sys, "executable", "/nowhere/python")
    assert "FileNotFoundError" in fixes.find(folder, found).notes[0]
