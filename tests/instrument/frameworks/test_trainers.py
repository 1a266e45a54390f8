"""Hugging Face's Trainer, accelerate and lightning, unmodified: healthy training is equal to the last bit, clipping is not done twice, and a
batch with NaN is survived."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FRAMEWORKS = ["transformers", "accelerate", "lightning"]


@cache
def told_by(framework):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed: pip install 'latent-drift[frameworks]'")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    module = f"tests.instrument.frameworks.train_{framework}"
    result = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.xdist_group(f"framework-{name}")) for name in FRAMEWORKS])
def told(request):
    return told_by(request.param)


def test_healthy_training_is_equal_to_the_last_bit(told):
    assert told["repeatable"], "the script itself must give the same twice, or nothing is shown"
    assert told["healthy"]["as_plain"]
    assert told["healthy"]["events"] == []
    assert told["healthy"]["steps"] >= 6


def test_what_the_framework_clips_is_not_clipped_again(told):
    case = told["clipped_by_the_framework"]
    assert case["differs_from_unclipped"], "the framework's clipping must bite, or nothing is shown"
    assert case["as_plain"]
    assert case["clipped_again"] == 0
    assert case["events"] == []


@pytest.mark.parametrize("case", ["poisoned", "poisoned_and_clipped"])
def test_a_batch_with_nan_is_survived(told, case):
    case = told[case]
    assert not case["plain_is_finite"], "plain, the training must be lost, or nothing is shown"
    assert case["finite"]
    assert case["learned"]
    assert case["skipped"] == 1
    assert "NS506" in case["codes"]
