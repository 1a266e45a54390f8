"""`--select AUDIT` on the audited lines, rendered in our own words: every row named, and a script that still trains after the fixes."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest

from patches.engine import check, fix
from patches.rules import RULES
from patches.selection import is_on
from patches.settings import AUDIT, AUDIT_CODES, Settings
from patches.source import Source
from tests.patches.fixture_files import ROOT

SCRIPT = ROOT / "AUDIT" / "original_form.py"
ROWS = "E1 E2 E3 X1 X2 X3 X4 X5 G1 G2 G3 M1 I1 I2 I3 I4 I5 I6 I7 I8 S1 Q1 Q2".split()
SETTINGS = Settings(select=(AUDIT,), unsafe=True)
SELECTED = [rule for rule in RULES if is_on(rule.code, rule.finding.default, SETTINGS)]
MARK = re.compile(r"# ([A-Z]\d): (NS\d{3})$")


def _marked() -> list[tuple[int, str, str]]:
    lines = enumerate(SCRIPT.read_text().splitlines(), 1)
    return [(number, *found.groups()) for number, line in lines if (found := MARK.search(line))]


def _named(text: str, settings: Settings) -> set[tuple[int, str]]:
    return {(d.line, d.code) for d in check(Source(text, str(SCRIPT), settings), SELECTED)}


def test_the_selection_is_the_audits_list():
    assert sorted(rule.code for rule in SELECTED) == sorted(AUDIT_CODES)


def test_every_row_of_the_audit_is_marked_in_the_script():
    assert sorted({row for _, row, _ in _marked()}) == sorted(ROWS)


@pytest.mark.parametrize(("line", "row", "code"), _marked())
def test_the_audited_line_is_named(line, row, code):
    assert (line, code) in _named(SCRIPT.read_text(), SETTINGS), f"row {row}"


@pytest.mark.parametrize("row", ["E1", "E2", "X5", "Q1", "M1"])
def test_a_row_is_named_because_of_what_it_says(row):
    """The negative control: with the audited expression replaced by a constant, nothing is named there."""
    number = next(n for n, r, _ in _marked() if r == row)
    lines = SCRIPT.read_text().splitlines(keepends=True)
    indent = lines[number - 1][: len(lines[number - 1]) - len(lines[number - 1].lstrip())]
    lines[number - 1] = f"{indent}pass  # nothing\n"
    assert not {code for line, code in _named("".join(lines), SETTINGS) if line == number}


def _run(path) -> list[float]:
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


def test_the_mended_script_still_runs_and_trains(tmp_path):
    text, applied = fix(SCRIPT.read_text(), str(SCRIPT), SELECTED, SETTINGS)
    assert {d.code for d in applied} >= {"NS201", "NS301", "NS501"}
    mended = tmp_path / "mended.py"
    mended.write_text(text)
    before, after = _run(SCRIPT), _run(mended)
    assert len(after) == len(before) == 3
    assert all(math.isfinite(loss) for loss in after)
    assert after[1] < after[0], "training goes on"
    assert fix(text, str(SCRIPT), SELECTED, SETTINGS)[1] == []


def test_the_audits_list_stays_out_of_the_defaults():
    """What the evidence does not support as a general rule is off unless it is asked for."""
    defaults = Settings()
    assert not [rule.code for rule in RULES if rule.code.startswith("NS9") and is_on(rule.code, rule.finding.default, defaults)]
