"""The arrows between the rooms, the light imports, and the public names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules_loaded_by(statement):
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout))


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import latent_drift", {"torch", "pydantic"}),
        ("import latent_drift.config; latent_drift.config.load()", {"torch", "libcst", "rich"}),
        ("import patches", {"torch", "libcst", "latent_drift", "typer"}),
        ("import patches.findings", {"torch", "libcst", "latent_drift", "typer", "packaging"}),
        ("import instrument.session", {"jinja2", "libcst"}),
        ("import patches.rules", {"torch", "latent_drift", "instrument"}),
    ],
)
def test_light_imports_stay_light(statement, forbidden):
    assert not forbidden & modules_loaded_by(statement)


def test_import_contracts_hold():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kept" in result.stdout


def test_top_level_is_the_fixed_one():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split("\n")
    top = {path.split("/")[0] for path in tracked if path}
    if not top:
        pytest.skip("not a git checkout")
    allowed = {"pyproject.toml", "README.md", "CHANGELOG.md", "latent_drift", "instrument", "patches", "tests"}
    assert {name for name in top if not name.startswith(".")} == allowed


@pytest.mark.parametrize("package", ["instrument", "patches", "latent_drift", "latent_drift.config", "latent_drift.stability"])
def test_every_listed_public_name_exists(package):
    from importlib import import_module

    module = import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert sorted(set(module.__all__)) == sorted(module.__all__)


@pytest.mark.parametrize("package", ["latent_drift", "instrument", "patches"])
def test_typed_marker_and_no_print_outside_the_command_lines(package):
    folder = ROOT / package
    assert (folder / "py.typed").exists()
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 900, f"{path} has grown large: is it still one thing?"
