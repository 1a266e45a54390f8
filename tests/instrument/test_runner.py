"""`python -m instrument run` and `stable-run` behave as `python` would. Each command line is a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.instrument.preloaded import preloaded

STABLE_RUN = [str(Path(sys.executable).with_name("stable-run"))]
MODULE = [sys.executable, "-m", "instrument", "run"]

HEAD = "import torch, sys, os\n"


def environment():
    return {name: value for name, value in os.environ.items() if name != "LATENT_DRIFT_CONFIG"} | {"COLUMNS": "40"}


def python(arguments, cwd, **kwargs):
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment(), check=False, **kwargs)


@pytest.fixture(scope="module")
def stable_run():
    """`stable-run` where it does not matter that torch was imported before."""
    with preloaded(environment()) as process:
        yield lambda arguments, folder: process.run([*STABLE_RUN, *arguments], folder)


@pytest.fixture
def script(tmp_path):
    def write(text, name="train.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_argv_path_main_and_stdout_are_the_scripts_own(script, tmp_path):
    script("VALUE = 7\n", "helper.py")
    script(
        HEAD + "import json, helper, pickle, __main__\n"
        "class Here: pass\n"
        "mine = [helper.VALUE, __main__.__dict__ is globals(), pickle.loads(pickle.dumps(Here())).__class__ is Here, str(__builtins__)]\n"
        "mine += sorted(globals())\n"
        "print(json.dumps([sys.argv, sys.path[0], __name__, __file__, *mine]))\n"
    )
    plain = python([sys.executable, "train.py", "--lr", "1", "-m", "x"], tmp_path)
    guarded = python([*STABLE_RUN, "train.py", "--lr", "1", "-m", "x"], tmp_path)
    assert plain.returncode == guarded.returncode == 0, guarded.stderr
    assert guarded.stdout == plain.stdout
    assert json.loads(guarded.stdout)[0] == ["train.py", "--lr", "1", "-m", "x"]
    assert "nothing had to be done" in guarded.stderr


def test_module_with_arguments(script, tmp_path):
    script("", "pkg/__init__.py")
    script(HEAD + "print(sys.argv[1:], __name__, __package__, os.path.basename(sys.argv[0]), sys.path[0])\n", "pkg/train.py")
    plain = python([sys.executable, "-m", "pkg.train", "--a", "1"], tmp_path)
    guarded = python([*MODULE, "-m", "pkg.train", "--a", "1"], tmp_path)
    assert guarded.stdout == plain.stdout != ""
    assert guarded.returncode == 0


def test_traceback_is_the_scripts_own(script, tmp_path):
    script(
        HEAD + "def f(x):\n    return torch.exp(x, 3)\n"
        "def g():\n    try:\n        f('no tensor')\n    except TypeError as e:\n        raise ValueError('mine') from e\n"
        "g()\n"
    )
    plain = python([sys.executable, "train.py"], tmp_path)
    guarded = python([*STABLE_RUN, "--quiet", "train.py"], tmp_path)
    assert plain.returncode == guarded.returncode == 1
    assert guarded.stderr == plain.stderr


def test_syntax_error_is_pythons_own(script, tmp_path):
    script("x = = 1\n")
    plain = python([sys.executable, "train.py"], tmp_path)
    guarded = python([*STABLE_RUN, "--quiet", "train.py"], tmp_path)
    assert plain.returncode == guarded.returncode == 1
    assert guarded.stderr.splitlines()[-3:] == plain.stderr.splitlines()[-3:]
    assert "instrument" not in guarded.stderr


@pytest.mark.parametrize(
    ("statement", "status"),
    [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('a message')", 1), ("raise SystemExit(True)", 1), ("sys.exit(-1)", 255)],
)
def test_exit_status(script, stable_run, tmp_path, statement, status):
    script(f"import sys\n{statement}\n")
    guarded = stable_run(["train.py"], tmp_path)
    assert guarded.returncode == status
    if "message" in statement:
        assert "a message" in guarded.stderr


def _hearing():
    """A process that was started in the background would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_writes_the_report_and_dies_of_the_signal(script, tmp_path):
    script(HEAD + "import time\ntorch.exp(torch.tensor(200.0))\nprint('ready', flush=True)\ntime.sleep(60)\n")
    command = [*STABLE_RUN, "--report", "out", "train.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hearing) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    (event,) = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert (event["code"], event["file"], event["line"]) == ("NS201", str(tmp_path / "train.py"), 3)


def test_report_table_and_fail_on_event(script, tmp_path):
    folder = "a_folder_with_a_rather_long_name_" * 3
    script(HEAD + "x = torch.exp(torch.tensor([1.0, 200.0]))\nprint(x.isfinite().all().item())\n", f"{folder}/train.py")
    guarded = python([*STABLE_RUN, "--report", "out", "--fail-on-event", f"{folder}/train.py"], tmp_path)
    assert guarded.returncode == 3
    assert guarded.stdout == "True\n"
    assert f"{folder}/train.py:2" in guarded.stderr, "never wrapped or cut, although the terminal is narrow"
    again = python([sys.executable, "-m", "instrument", "report", "out"], tmp_path)
    assert again.returncode == 0
    assert f"{folder}/train.py:2" in again.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["interventions"] == 1


def test_give_up_ends_with_status_3_and_the_users_line(script, stable_run, tmp_path):
    script(
        HEAD + "p = torch.nn.Parameter(torch.ones(2))\no = torch.optim.SGD([p], lr=0.1)\n"
        "for _ in range(100000):\n    o.zero_grad()\n    p.grad = torch.full((2,), float('nan'))\n    o.step()\n"
    )
    guarded = stable_run(["train.py"], tmp_path)
    assert guarded.returncode == 3
    assert 'train.py", line 7' in guarded.stderr
    assert "max_consecutive_skips" in guarded.stderr
    assert "/instrument/" not in guarded.stderr


@pytest.mark.parametrize("names", [("instrument.py", "patches/tool.py", "latent_drift.py"), ("instrument/__init__.py",)], ids=["files", "package"])
def test_the_users_own_modules_of_our_names_neither_break_us_nor_are_shadowed(script, tmp_path, names):
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]
    for name in names:
        script(f"MINE = {name!r}\n", name)
    mine = "".join(f"from {module} import MINE\nassert MINE == {name!r}\n" for module, name in zip(modules, names, strict=True))
    script(HEAD + mine + "print(torch.exp(torch.tensor(200.0)).isfinite().item())\n")
    guarded = python([*STABLE_RUN, "--report", "out", "train.py"], tmp_path)
    assert guarded.returncode == 0, guarded.stderr
    assert guarded.stdout == "True\n"
    assert (tmp_path / "out" / "events.jsonl").exists()


def test_a_script_can_use_instrument_itself(script, stable_run, tmp_path):
    script(
        HEAD
        + "import instrument\nwith instrument.stable(profile='observe') as run:\n    print(torch.exp(torch.tensor(200.0)).item(), len(run.events))\n"
    )
    assert stable_run(["train.py"], tmp_path).stdout == "inf 1\n"


# Asked wrongly: status 2, and what to do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "9.9", "train.py"], "1.0.0"),
        (["nowhere.py"], "no such file"),
        (["--profile", "gaurd", "train.py"], "guard"),
        (["--config", "typo.toml", "train.py"], "max_norm"),
        (["--config", "missing.toml", "train.py"], "missing.toml"),
        ([], "SCRIPT"),
    ],
    ids=["pin", "script", "profile", "typo in a key", "config file", "nothing"],
)
def test_asked_wrongly(script, stable_run, tmp_path, arguments, expected):
    script("print('ran')\n")
    script('version = "1.0.0"\n[gradient.clip]\nkind = "norm"\nmax_nrom = 1.0\n', "typo.toml")
    guarded = stable_run(arguments, tmp_path)
    assert guarded.returncode == 2
    assert expected in guarded.stderr
    assert "Traceback" not in guarded.stderr
    assert guarded.stdout == ""


def test_doctor_tells_of_a_shadowing_file(script, tmp_path):
    script("raise SystemExit('the wrong one ran')\n", "instrument.py")
    wrong = python([sys.executable, "-m", "instrument", "doctor"], tmp_path)
    assert "the wrong one ran" in wrong.stderr, "python -m puts the working directory first"
    doctor = python([*STABLE_RUN, "--doctor"], tmp_path)
    assert doctor.returncode == 1
    assert "instrument.py" in doctor.stderr
    assert "stable-run" in doctor.stderr
    assert "torch" in doctor.stdout


def test_demo_fails_plain_and_trains_guarded():
    result = python([sys.executable, "-m", "instrument", "demo", "--steps", "120"], Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    plain, guarded = result.stdout.split("Now the very same file")
    assert "nan" in plain
    assert "NOT FINITE" in plain
    assert "nan" not in guarded.split("latent-drift ")[0]
    assert "parameters finite" in guarded
    assert "NS401" in guarded
    assert "legacy_vae.py:" in guarded
    final = float(guarded.split("median loss of the last 20 steps ")[1].split(",")[0])
    assert final < 0.1
