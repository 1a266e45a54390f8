"""The runner's options: one definition for both commands, and what --fail-on-event, --export and --live do to a script's run."""

import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

import instrument
from instrument import cli, commands
from instrument.report.fixes import Fixes
from instrument.runner import Outcome
from latent_drift import __version__
from tests.instrument.report.recorded import write_folder
from tests.instrument.test_runner import HEAD, STABLE_RUN, python

OVERFLOW = HEAD + "x = torch.exp(torch.tensor([1.0, 200.0]))\nprint(x.isfinite().all().item())\n"


def options(app, name):
    command = typer.main.get_command(app)
    command = command.commands[name] if hasattr(command, "commands") else command
    return {param.name: (tuple(param.opts), param.help, param.default) for param in command.params if hasattr(param, "help")}


def test_both_commands_have_the_same_options():
    assert options(cli.app, "run") == options(cli._runner, "stable-run")
    assert {"report", "live", "export", "fail_on_event"} <= set(options(cli.app, "run"))


def finished(profile, status, text):
    """How the runner ends after a script of this status that computes this."""
    with instrument.stable(profile=profile) as run:
        eval(text, {"torch": torch})
    try:
        commands._finish(Outcome(status, 0, run), report=None, fail_on_event=True, quiet=True)
    except typer.Exit as end:
        return end.exit_code
    return 0


@pytest.mark.parametrize(
    ("profile", "own", "text", "status"),
    [
        ("guard", 0, "torch.exp(torch.tensor(200.0))", 3),
        ("observe", 0, "torch.exp(torch.tensor(200.0))", 3),
        ("guard", 0, "torch.exp(torch.tensor(1.0))", 0),
        ("guard", 5, "torch.exp(torch.tensor(200.0))", 5),
    ],
    ids=["an overflow", "found only", "healthy", "the script's own status comes first"],
)
def test_fail_on_event(profile, own, text, status):
    assert finished(profile, own, text) == status


def test_live_and_export_leave_standard_output_alone(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "train.py").write_text(
        HEAD + "p = torch.nn.Parameter(torch.ones(2))\no = torch.optim.SGD([p], lr=0.1)\n"
        "for _ in range(3):\n    o.zero_grad()\n    (p ** 2).sum().backward()\n    o.step()\nprint(p.tolist())\n"
    )
    plain = python([sys.executable, "train.py"], tmp_path)
    shown = python([*STABLE_RUN, "--live", "--quiet", "--profile", "guard", "--export", "tensorboard:board", "train.py"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == plain.stdout
    assert "latent-drift: step 3, loss" in shown.stderr
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(("export", "named"), [("statsd", "prometheus:PORT"), ("prometheus:here", "port number")])
def test_an_export_that_cannot_be_had_is_refused_before_anything_runs(tmp_path, export, named):
    (tmp_path / "train.py").write_text("raise SystemExit('it ran')\n")
    refused = CliRunner().invoke(cli.app, ["run", "--export", export, str(tmp_path / "train.py")])
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert named in refused.stderr


def test_a_report_that_cannot_be_written_is_told_and_the_script_runs(tmp_path):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "train.py").write_text(OVERFLOW)
    ran = python([*STABLE_RUN, "--quiet", "--report", "taken/out", "train.py"], tmp_path)
    assert ran.stdout == "True\n"
    assert ran.returncode == 2
    assert "taken/out" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_report_writes_the_page_again_and_names_a_folder_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr("instrument.report.fixes.find", lambda folder, events: Fixes())
    write_folder(tmp_path / "out")
    made = CliRunner().invoke(cli.app, ["report", str(tmp_path / "out")])
    assert made.exit_code == 0, made.stderr
    assert "train.py:48" in made.stdout
    assert (tmp_path / "out" / "report.html").exists()
    empty = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert empty.exit_code == 2
    assert "events.jsonl" in empty.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "run     Run a script"),
        (["run", "--help"], 0, "--fail-on-event"),
        (["--version"], 0, f"latent-drift {__version__}"),
        (["run", "--confg", "1.0.0", "train.py"], 2, "error: no such option: --confg"),
        (["run", "no_such_script.py"], 2, "error: can't open file 'no_such_script.py'"),
    ],
    ids=["nothing", "help", "version", "a mistyped option", "a missing script"],
)
def test_what_needs_no_torch_does_not_wait_for_it(arguments, status, said):
    ask = "import sys\nfrom instrument import cli\ntry:\n    cli.main()\nfinally:\n    print('torch' in sys.modules)\n"
    result = subprocess.run([sys.executable, "-c", ask, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == status
    assert said in result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "False"
