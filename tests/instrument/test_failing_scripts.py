"""Unmodified legacy-style scripts that go wrong: plain they end non-finite or raise; guarded they end finite and the line of birth is named.

Each script of scripts/failing declares its line of birth with `# BIRTH`. What is not reached is listed here by name, so that it cannot grow.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instrument.events import CONSEQUENCES

FOLDER = Path(__file__).parent / "scripts"
SCRIPTS = sorted((FOLDER / "failing").glob("*.py"))
NOT_SAVED: set[str] = set()
NOT_LOCATED: set[str] = set()
WITHOUT_NUMBERS = {"empty_mean"}  # of nothing there is no range


def drive(profile):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "drive.py"), profile, *map(str, SCRIPTS)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return {Path(row["path"]).stem: row for row in map(json.loads, result.stdout.splitlines())}


@pytest.fixture(scope="module")
def rows():
    return {profile: drive(profile) for profile in ("plain", "train")}


def ends_finite(row):
    return row["status"] == 0 and row["finite"] and math.isfinite(float(row["loss"]))


@pytest.mark.xdist_group("failing scripts")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_plain_it_fails(rows, script):
    assert not ends_finite(rows["plain"][script.stem]), "negative control"


@pytest.mark.xdist_group("failing scripts")
def test_guarded_it_ends_with_finite_loss_and_parameters(rows):
    assert {name for name, row in rows["train"].items() if not ends_finite(row)} == NOT_SAVED
    assert all(row["finite"] for row in rows["train"].values()), "parameters never become non-finite"
    assert all(row["status"] == 0 for row in rows["train"].values())


@pytest.mark.xdist_group("failing scripts")
def test_the_line_of_birth_is_named(rows):
    wrong = set()
    for script in SCRIPTS:
        declared = [i for i, line in enumerate(script.read_text(encoding="utf-8").splitlines(), start=1) if "# BIRTH" in line]
        assert len(declared) == 1, script
        if rows["train"][script.stem]["named"] != declared[0]:
            wrong.add(script.stem)
    assert wrong == NOT_LOCATED


@pytest.mark.xdist_group("failing scripts")
def test_each_located_case_says_what_went_in(rows):
    without_numbers = set()
    for name, row in rows["train"].items():
        cause = row["cause"]
        assert cause["file"].endswith(f"{name}.py")
        assert cause["source"]
        assert cause["message"]
        assert 0 <= cause["step"] <= row["steps"]
        if cause["dtype"] is None or (cause["minimum"] is None and not cause["nan"] + cause["inf"]):
            without_numbers.add(name)
    # An optimizer's own update, or a rate, has no tensor that went into an operation.
    allowed = CONSEQUENCES | {"NS512"}
    assert {name for name in without_numbers if rows["train"][name]["cause"]["code"] not in allowed} == WITHOUT_NUMBERS
