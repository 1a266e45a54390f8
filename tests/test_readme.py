"""What README shows is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_there_are_examples_and_both_commands():
    assert len(BLOCKS) >= 2
    for name in ("demo", "tests"):
        assert re.search(rf"<!-- ci:{name} -->\n```bash\npython3 -m venv .* tests/constraints.txt .*\n```", TEXT)


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_python_example_runs(index, tmp_path):
    environment = {**os.environ, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    script = tmp_path / "example.py"
    script.write_text(BLOCKS[index], encoding="utf-8")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 0, result.stderr


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
