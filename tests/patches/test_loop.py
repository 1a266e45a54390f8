"""The loop, end to end: the legacy script fails; guarded it trains and says why; patched it trains alone, and no guard acts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEGACY = ROOT / "instrument" / "demo" / "legacy_vae.py"
RESULT = re.compile(r"median loss of the last \d+ steps (\S+), parameters (finite|NOT FINITE)")


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False)


def _quality(done: subprocess.CompletedProcess[str]) -> tuple[float, str]:
    assert done.returncode == 0, done.stderr
    found = RESULT.search(done.stdout)
    assert found is not None, done.stdout
    return float(found[1]), found[2]


def test_the_legacy_script_is_guarded_then_mended_then_needs_no_guard(tmp_path):
    shutil.copy(LEGACY, tmp_path / "train.py")
    loss, parameters = _quality(_python(tmp_path, "train.py"))
    assert loss != loss, "the legacy script is expected to fail plain"
    assert parameters == "NOT FINITE"

    guarded = _python(tmp_path, "-m", "instrument", "run", "--report", "out", "train.py")
    guarded_loss, parameters = _quality(guarded)
    assert parameters == "finite"
    assert (tmp_path / "out" / "events.jsonl").read_text().strip()

    shown = _python(tmp_path, "-m", "patches", "diff", "--from-report", "out", "train.py")
    assert shown.returncode == 0
    assert shown.stdout.startswith("--- ./train.py")
    applied = _python(tmp_path, "-m", "patches", "apply", "--unsafe", "--from-report", "out", "train.py")
    assert applied.returncode == 0, applied.stderr

    mended_loss, parameters = _quality(_python(tmp_path, "train.py"))
    assert parameters == "finite"
    assert mended_loss < 2 * guarded_loss, "the mended script is to reach the guarded one's quality"

    again = _python(tmp_path, "-m", "instrument", "run", "--fail-on-event", "--report", "again", "train.py")
    assert again.returncode == 0, f"a guard still had to act:\n{again.stderr}"
    assert _quality(again) == (mended_loss, "finite")
    assert "nothing had to be done" in again.stderr
    second = _python(tmp_path, "-m", "patches", "apply", "--unsafe", "--from-report", "out", "train.py")
    assert "0 fixes, 0 of 1 files changed" in second.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((Path(__file__).parent / "fixtures" / "LOOP").glob("*.py")), ids=lambda path: path.stem)
def test_a_failing_script_is_finite_plain_once_its_report_was_applied(script, tmp_path):
    """Small scripts in the style of published code, each with another fault; the last line printed ends in whether the parameters are finite."""
    shutil.copy(script, tmp_path / "train.py")
    plain = _python(tmp_path, "train.py")
    assert not plain.stdout.strip().endswith("True"), "the script is expected to fail plain"
    guarded = _python(tmp_path, "-m", "instrument", "run", "--report", "out", "train.py")
    assert guarded.stdout.strip().endswith("True"), guarded.stderr
    applied = _python(tmp_path, "-m", "patches", "apply", "--unsafe", "--from-report", "out", "train.py")
    assert applied.returncode == 0, applied.stderr
    mended = _python(tmp_path, "train.py")
    assert mended.stdout.strip().endswith("True"), f"{mended.stdout}{mended.stderr}\n{(tmp_path / 'train.py').read_text()}"
    assert "nan" not in mended.stdout
