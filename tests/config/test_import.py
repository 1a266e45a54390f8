"""The config layer is light: no torch, and little else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules_after(statement: str) -> set[str]:
    """Top-level modules in a fresh process after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import latent_drift.config",
        "from latent_drift.config import load, explain, available, active; load('~=1.0', profile='guard'); str(explain()); available(); active()",
        "from latent_drift.config.lock import Lock, check_lock; from latent_drift.config import load; check_lock(Lock.of(load()))",
        "from latent_drift.config.schema import json_schema; json_schema()",
        "import latent_drift.cli",
        "import latent_drift.cli as cli; import sys; sys.argv = ['latent-drift', 'config', 'list']\ntry: cli.main()\nexcept SystemExit: pass",
    ],
)
def test_no_torch_is_loaded(statement: str) -> None:
    loaded = modules_after(statement)
    assert "latent_drift" in loaded
    assert not loaded & {"torch", "numpy", "instrument", "patches", "libcst"}


def test_the_check_above_can_fail() -> None:
    assert "numpy" in modules_after("import numpy")


def test_the_command_line_libraries_are_not_needed_to_load_a_config() -> None:
    assert not modules_after("from latent_drift.config import load; load('1.0.0')") & {"typer", "click", "rich", "difflib", "tomllib"}
