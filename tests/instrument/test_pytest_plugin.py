"""`pytest --stable` and the marker. The inner runs are processes of their own: whether torch is imported is part of what is tested."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEALTHY = """
import torch

def test_healthy():
    assert torch.exp(torch.tensor(1.0)) > 2
"""
SICK = """
import torch

def variance(log_variance):
    return torch.exp(log_variance)

def test_sick():
    assert variance(torch.tensor(200.0)) > 0
"""


def pytest_in(folder, *arguments, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "LATENT_DRIFT"))}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "instrument.pytest_plugin", "-W", "error", "-p", "no:cacheprovider", "-rA", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment, check=False)


def outcomes(result):
    counts = dict.fromkeys(("passed", "failed", "skipped", "errors"), 0)
    last = [line for line in result.stdout.splitlines() if re.search(r"in [0-9.]+s", line)][-1]
    counts.update((name, int(number)) for number, name in re.findall(r"(\d+) (passed|failed|skipped|errors)", last))
    return counts


def test_the_plugin_is_registered_in_pyproject():
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert document["project"]["entry-points"]["pytest11"] == {"latent-drift": "instrument.pytest_plugin"}


def test_without_the_option_nothing_happens_and_torch_is_not_imported(tmp_path):
    test = "import sys\n\ndef test_light():\n    assert 'torch' not in sys.modules and 'instrument.session' not in sys.modules\n"
    result = pytest_in(tmp_path, "--strict-markers", test_light=test)
    assert outcomes(result)["passed"] == 1, result.stdout
    assert "stable:" not in result.stdout


IDENTITY = "import torch\n\nBEFORE = torch.exp\n\ndef pytest_runtest_teardown(item):\n    assert torch.exp is BEFORE\n"


def test_a_numerical_event_fails_the_test_with_its_line(tmp_path):
    result = pytest_in(tmp_path, "--stable", "test_sick.py", "test_healthy.py", test_sick=SICK, test_healthy=HEALTHY, conftest=IDENTITY)
    assert outcomes(result) == {"passed": 1, "failed": 1, "skipped": 0, "errors": 0}, result.stdout
    assert "a number went wrong at test_sick.py:5: NS201 exp-logvar:" in result.stdout
    assert "return torch.exp(log_variance)" in result.stdout
    assert result.returncode == 1


WORDS = {
    ("--stable", "."): "test_named",
    (".", "--stable"): "test_named",
    ("--stable", "1.0.0", "."): "test_named",
    ("--stable", "~=1.0"): "test_named",
    ("--stable", "test_other.py"): "test_other",
    ("--stable=1.0.0", "test_other.py"): "test_other",
}


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_the_option_does_not_take_a_folder_for_its_pin(tmp_path, words):
    named, other = "def test_named():\n    pass\n", "def test_other():\n    pass\n"
    result = pytest_in(tmp_path, "--collect-only", "-q", *words, test_named=named, test_other=other)
    assert WORDS[words] in result.stdout, result.stdout + result.stderr
    assert ("test_named" in result.stdout) == (WORDS[words] == "test_named")
    header = pytest_in(tmp_path, "--collect-only", *words)
    assert re.search(r"stable: 1\.0\.0\S* sha256:\w+ profile=guard", header.stdout)


def test_a_pin_that_cannot_be_used_is_refused_before_any_test(tmp_path):
    result = pytest_in(tmp_path, "--stable=9.9", test_light="def test_light():\n    pass\n")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--stable=9.9" in result.stderr
    assert "passed" not in result.stdout


MARKED = """
import pytest
import torch

def overflow():
    return torch.exp(torch.tensor(200.0))

@pytest.mark.stable
def test_found():
    overflow()

@pytest.mark.stable(allow=["NS201"])
def test_allowed():
    assert torch.isfinite(overflow())

@pytest.mark.stable(profile="observe")
def test_observed():
    assert torch.isinf(overflow())

@pytest.mark.stable(enabled=False)
def test_left_alone():
    assert torch.isinf(overflow())

def test_unmarked():
    assert torch.isinf(overflow())

@pytest.mark.stable("1.0.0", gradient={"nonfinite": "zero"})
def test_override():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    p.grad = torch.tensor([1.0, float("nan")])
    optimizer.step()

@pytest.mark.stable(profile="train")
def test_clipping_is_no_failure():
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.full((2,), 100.0)
    torch.optim.SGD([p], lr=0.1).step()
    assert p.detach().sub(1).norm() < 0.11

@pytest.mark.stable(profil="train")
def test_wrong_word():
    pass

@pytest.mark.stable
def test_fails_itself():
    assert overflow() < 1
"""


def test_the_marker(tmp_path):
    result = pytest_in(tmp_path, "--strict-markers", test_marked=MARKED)
    told = {name: word for word, name in re.findall(r"^(PASSED|FAILED) test_marked.py::(\w+)", result.stdout, flags=re.MULTILINE)}
    expected = dict.fromkeys(["test_allowed", "test_left_alone", "test_unmarked", "test_clipping_is_no_failure"], "PASSED")
    expected |= dict.fromkeys(["test_found", "test_observed", "test_override", "test_wrong_word", "test_fails_itself"], "FAILED")
    assert told == expected, result.stdout
    assert "those elements were set to 0" in result.stdout
    assert "profil" in result.stdout
    assert re.search(r"-+ Captured stable call -+\nlatent-drift 1\.0\.0", result.stdout), "the table is shown beside the test's own failure"


def test_under_the_option_and_xdist_a_marker_keeps_its_own_words(tmp_path):
    result = pytest_in(tmp_path, "-p", "xdist.plugin", "-n", "1", "--stable=1.0.0", test_marked=MARKED)
    assert "PASSED test_marked.py::test_left_alone" in result.stdout, result.stdout + result.stderr
    assert "FAILED test_marked.py::test_unmarked" in result.stdout
    assert "a number went wrong at test_marked.py:6: NS201" in result.stdout
