"""torch-optimizer's 30 classes are guarded whenever a script imports them, and are torch-optimizer's own again after the block."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("late_import.py")


@pytest.mark.parametrize("when", ["before", "inside", "between"])
def test_every_class_of_torch_optimizer_skips_a_nan_gradient_whenever_it_is_imported(when):
    result = subprocess.run([sys.executable, str(SCRIPT), when], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout)
    assert len(outcomes) >= 30
    assert [name for name, found in outcomes.items() if not found["spoilt_outside"]] == [], "negative control, and the block is over"
    wrong = {name: found for name, found in outcomes.items() if not (found["kept"] and found["moved"] and found["finite"] and found["skipped"] == 1)}
    assert wrong == {}
    assert [name for name, found in outcomes.items() if found["left"]] == []
