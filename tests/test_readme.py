"""What README shows is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.instrument.preloaded import preloaded

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
# The installing ones, which stand after a mark, are what the gate itself runs.
SHELL_BLOCKS = re.findall(r"(?<!-->\n)```bash\n(.*?)```", TEXT, flags=re.DOTALL)

SCRIPT = """
import torch
import torch.nn.functional as F

p = torch.nn.Parameter(torch.tensor([1.0, 120.0]))
optimizer = torch.optim.SGD([p], lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    F.softmax(torch.full((1, 2), float("-inf")), dim=-1)
    (p.exp() - p).mean().backward()
    optimizer.step()
"""


def test_there_are_examples_and_both_commands():
    assert len(BLOCKS) >= 2
    for name in ("demo", "tests"):
        assert re.search(rf"<!-- ci:{name} -->\n```bash\npython3 -m venv .* tests/constraints.txt .*\n```", TEXT)


@pytest.fixture(scope="module")
def python():
    """Runs scripts with every warning an error."""
    with preloaded({**os.environ, "PYTHONWARNINGS": "error"}) as process:
        yield process


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_python_example_runs(index, python, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(BLOCKS[index], encoding="utf-8")
    result = python.run([str(script)], tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def surroundings(tmp_path):
    """A folder with what the commands name, and an environment that finds the commands."""
    for path in ("train.py", "package/train.py", "src/model.py", "tests/test_model.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(SCRIPT if "test_" not in path else "def test_nothing():\n    pass\n", encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return tmp_path, {**os.environ, "PATH": path}


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.partition("#")[0].strip())
def test_shell_example_runs(block, surroundings):
    folder, environment = surroundings
    for line in block.splitlines():
        result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=folder, env=environment, timeout=280, check=False)
        # 1 is an answer (findings, a script that fails plain); 2 and above, and 127, mean that it was asked wrongly
        assert result.returncode in (0, 1), f"{line}\n{result.stderr}"
        assert result.returncode == 0 or line.startswith(("python -m patches", "python train.py")), f"{line}\n{result.stderr}"


@pytest.mark.parametrize(
    "command", ["stable-run --help", "latent-drift --help", "latent-drift config list", "python -m patches list", "python -m instrument --help"]
)
def test_named_commands_answer(command):
    words = command.split()
    words[0] = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_every_room_that_the_map_names_exists():
    for room in re.findall(r"^\| `([a-z_/.]+)`", TEXT.partition("## How it is built")[2], flags=re.MULTILINE):
        assert (ROOT / room).exists(), room
