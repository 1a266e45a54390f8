"""`latent-drift train`: a run from the shell, its results, its continuation, and every way to ask it wrongly."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latent_drift.config.sources import ENVIRONMENT
from latent_drift.training.checkpoint import read_checkpoint
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
SIZES = {
    "ode": ("--size", "latent_size=4", "--size", "hidden_size=8", "--size", "embed_size=4", "--size", "num_slices=4"),
    "raccoon": ("--size", "latent_dim=4", "--size", "hidden_dim=9", "--size", "embed_dim=4"),
}
BARE = ("--no-plots", "--no-evaluate")


def tiny(kind: str, steps: int = 6) -> tuple[str, ...]:
    return ("train", kind, "--steps", str(steps), "--batch-size", "4", "--data", "synthetic:samples=40", *SIZES[kind])


def tree(path: Path) -> dict[str, str]:
    """Every file below a folder, by name and content."""
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.rglob("*")) if file.is_file()}


def state(path: Path) -> str:
    content = dict(read_checkpoint(path).content)
    return (
        repr({name: content[name] for name in ("step", "optimizer_step", "schedule")})
        + hashlib.sha256(b"".join(value.numpy().tobytes() for value in content["model"].values())).hexdigest()
    )


@pytest.mark.parametrize("kind", ["ode", "raccoon"])
def test_a_run_leaves_its_results_in_a_folder(run: Run, project: Path, kind: str) -> None:
    outcome = run(*tiny(kind), "--out", "results/first")
    assert (outcome.status, outcome.out) == (0, "results/first\n")
    folder = project / "results" / "first"
    names = {"checkpoint.pt", "checkpoint.pt.previous", "metrics.jsonl", "run.json", "result.json", "plots"}
    assert {path.name for path in folder.iterdir()} == names | ({"samples.txt"} if kind == "ode" else set())
    assert sorted(path.name for path in (folder / "plots").iterdir()) == ["gradient_norm.png", "latents.png", "loss.png"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(6))
    assert all({"loss", "grad_norm", "lr", "clipped", "skipped"} <= set(record) for record in records)
    assert json.loads((folder / "result.json").read_text())["step"] == 6
    assert "step 6/6  loss" in outcome.err  # no terminal: lines, and no bar
    assert "\x1b" not in outcome.err
    assert "━" not in outcome.err


def test_without_out_runs_are_numbered(run: Run, project: Path) -> None:
    assert [run(*tiny("raccoon", 1), *BARE, "-q").out for _ in range(2)] == ["runs/raccoon-1\n", "runs/raccoon-2\n"]
    assert tree(project / "runs/raccoon-1") == tree(project / "runs/raccoon-2")  # the same seed is the same run, checkpoint included


def test_quiet_says_nothing(run: Run) -> None:
    assert run(*tiny("raccoon", 1), *BARE, "--out", "r", "--quiet").err == ""


@pytest.mark.parametrize("kind", ["ode", "raccoon"])
def test_a_run_that_was_left_goes_on_to_the_same_end(run: Run, project: Path, kind: str) -> None:
    run(*tiny(kind), *BARE, "--out", "whole")
    left = run(*tiny(kind), *BARE, "--out", "parts", "--stop-after", "2")
    assert (left.status, left.out) == (0, "")
    assert f"left at step 2 of 6; checkpoint in parts. Go on with: latent-drift train {kind} --resume --out parts\n" in left.err
    resumed = run("train", kind, "--resume", "--out", "parts", *BARE)
    assert (resumed.status, resumed.out) == (0, "parts\n")
    assert "parts: continued at step 2, to step 6" in resumed.err
    assert (project / "parts/metrics.jsonl").read_bytes() == (project / "whole/metrics.jsonl").read_bytes()
    assert state(project / "parts") == state(project / "whole")


def test_the_way_on_works_where_the_project_pins_another_config(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "0.9.0")
    left = run(*tiny("raccoon"), *BARE, "--out", "r", "--config", "1.0.0", "--stop-after", "2")
    command = shlex.split(left.err.partition("Go on with: latent-drift ")[2].strip())
    assert run(*command, *BARE).status == 0
    assert read_checkpoint(project / "r").config.version == "1.0.0"


def test_options_reach_the_run(run: Run, project: Path) -> None:
    options = ("--optimizer", "lamb", "--opt", "lr=0.01", "--opt", "betas=(0.8,0.9)", "--scheduler", "steplr", "--sched", "step_size=2")
    more = ("--precision", "bfloat16", "--seed", "9", "--config", "~=1.0", "--loss-weights", "1,0,0.5", "--checkpoint-every", "3", "--device", "cpu")
    assert run(*tiny("raccoon"), *BARE, "--out", "r", *options, *more).status == 0
    checkpoint = read_checkpoint(project / "r")
    settings = checkpoint.settings
    assert (settings.optimizer, settings.optimizer_arguments) == ("Lamb", {"lr": 0.01, "betas": (0.8, 0.9)})
    assert (settings.scheduler, settings.scheduler_arguments) == ("StepLR", {"step_size": 2})
    assert (settings.precision, settings.seed, settings.loss_weights, settings.checkpoint_every) == ("bfloat16", 9, (1.0, 0.0, 0.5), 3)
    assert checkpoint.content["optimizer"]["param_groups"][0]["betas"] == (0.8, 0.9)
    rates = [json.loads(line)["lr"] for line in (project / "r/metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


def test_another_seed_is_another_run(run: Run, project: Path) -> None:
    for seed in ("1", "2"):
        run(*tiny("raccoon", 2), *BARE, "--out", seed, "--seed", seed)
    assert state(project / "1") != state(project / "2")


def test_a_file_of_labelled_lines_can_be_trained_on(run: Run, project: Path) -> None:
    (project / "mine.tsv").write_text("ERROR\tkaboom\nINFO\tfine\n" * 4)
    assert run(*tiny("raccoon", 2), "--data", "mine.tsv", *BARE, "--out", "r").status == 0
    assert read_checkpoint(project / "r").settings.data == str(project / "mine.tsv")
    assert run("train", "raccoon", "--resume", "--out", "r", "--steps", "3", "--data", "./mine.tsv", *BARE).status == 0
    (project / "mine.tsv").write_text("ERROR\tkaboom\nINFO\tgone\n" * 4)
    before = tree(project)
    outcome = run("train", "raccoon", "--resume", "--out", "r", "--steps", "5", *BARE)
    assert outcome.status == 2
    assert "mine.tsv: has changed since the run in r began" in outcome.err
    assert tree(project) == before


def test_a_run_outlives_the_reader_of_its_messages(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise self.error

        def flush(self) -> None:
            raise self.error

    for name, error in (("pipe", BrokenPipeError(errno.EPIPE, "Broken pipe")), ("disk", OSError(errno.ENOSPC, "No space left on device"))):
        stream = Gone()
        stream.error = error  # type: ignore[attr-defined]
        with monkeypatch.context() as context:
            context.setattr(sys, "stderr", stream)
            assert run(*tiny("raccoon", 4), *BARE, "--out", name).status == 0
        assert read_checkpoint(project / name).finished


def test_tensorboard_that_cannot_be_written_ends_without_the_run(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def full(self: object, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    outcome = run(*tiny("raccoon", 4), *BARE, "--tensorboard", "--out", "r")
    assert outcome.status == 0
    assert outcome.err.count("TensorBoardLog: cannot be written (No space left on device); it ends here, training goes on") == 1


REFUSED = {
    "unknown optimizer": (("--optimizer", "AdamWW"), r"--optimizer AdamWW: neither .*Did you mean AdamW"),
    "optimizer that cannot be used": (("--optimizer", "lbfgs"), r"LBFGS cannot train here: it evaluates the loss several times"),
    "unknown argument": (("--opt", "beta=3"), r"--opt beta: optimizer AdamW has no such argument\. Did you mean betas\?"),
    "refused argument": (("--opt", "lr=-3"), r"--optimizer AdamW with lr=-3.*Invalid learning rate"),
    "no assignment": (("--opt", "lr"), r"--opt expects key=value.*got 'lr'"),
    "unknown schedule": (("--scheduler", "cosine"), r"--scheduler cosine: no such schedule\. Did you mean .*CosineAnnealingLR"),
    "schedule without its argument": (("--scheduler", "StepLR"), r"needs step_size: add --sched step_size=VALUE"),
    "unknown precision": (("--precision", "fp16"), r"--precision must be one of float32, bfloat16, float16; got 'fp16'"),
    "unknown device": (("--device", "gpu"), r"--device must be cpu, cuda, cuda:N or mps; got 'gpu'"),
    "unknown size": (("--size", "hiden=3"), r"--size hiden: raccoon has no such size\. Did you mean hidden_dim\?"),
    "size that is none": (("--size", "memory_size=0"), r"--size memory_size: raccoon has no such size"),
    "wrong weights": (("--loss-weights", "1,2"), r"--loss-weights expects three numbers"),
    "negative weight": (("--loss-weights", "1,-2,0"), r"--loss-weights must be finite and not negative"),
    "no data": (("--data", "nowhere.tsv"), r"--data \S*nowhere\.tsv: is no file; give a file, or synthetic"),
    "empty data": (("--data", "synthetic:samples=0"), r"--data has no items"),
    "unknown pin": (("--config", ">=99"), r"no stability config satisfies '>=99'"),
    "steps": (("--steps", "-1"), r"--steps must be at least 0; got -1"),
    "resume of nothing": (("--resume",), r"--out new: there is no such folder, so there is nothing to resume"),
    "change without resume": (("--change-config",), r"--change-config is for --resume"),
}


def test_a_size_that_is_none_is_refused(run: Run) -> None:
    for value in ("0", "1.5", "big", "True"):
        assert (
            f"--size hidden_dim must be a whole number of at least 1; got {value if value != 'big' else repr(value)}"
            in run("train", "raccoon", "--size", f"hidden_dim={value}").err
        )


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_made(run: Run, project: Path, case: str) -> None:
    options, message = REFUSED[case]
    outcome = run("train", "raccoon", "--steps", "2", *SIZES["raccoon"], "--out", "new", *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("latent-drift: error: ")
    assert re.search(message, outcome.err, re.DOTALL), outcome.err
    assert "Traceback" not in outcome.err
    assert not (project / "new").exists()


def test_a_device_that_is_not_there_says_which_are(run: Run) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    outcome = run(*tiny("raccoon"), "--device", "cuda")
    assert outcome.status == 2
    assert "has no cuda device; it has cpu" in outcome.err


REFUSED_ON_A_RUN = {
    "another run there": (("train", "ode", "--out", "r"), r"--out r: holds a run already \(raccoon, 4 steps, seed 0\)"),
    "finished": (
        ("train", "raccoon", "--resume", "--out", "r"),
        r"has taken 4 steps, of 4: there is nothing left to do\. Give more, for example --steps 8",
    ),
    "fewer steps": (("train", "raccoon", "--resume", "--out", "r", "--steps", "2"), r"has taken 4 steps, of 2"),
    "other settings": (
        ("train", "raccoon", "--resume", "--out", "r", "--steps", "8", "--batch-size", "5", "--optimizer", "SGD"),
        r"keeps the settings of the run in r: --batch-size is 4 in the run, 5 was given; --optimizer is AdamW in the run, SGD was given",
    ),
    "another kind": (("train", "ode", "--resume", "--out", "r"), r"holds the model 'raccoon', 'ode' is needed"),
    "another config": (
        ("train", "raccoon", "--resume", "--out", "r", "--steps", "8", "--config", "0.9.0"),
        r"amp\.init_scale: 1024\.0 -> 65536\.0.*--change-config",
    ),
    "no folder named": (("train", "raccoon", "--resume"), r"--resume needs to know which run: add --out FOLDER"),
}


@pytest.mark.parametrize("case", REFUSED_ON_A_RUN)
def test_a_run_that_is_there_loses_nothing(run: Run, project: Path, case: str) -> None:
    run(*tiny("raccoon", 4), *BARE, "--out", "r")
    before = tree(project)
    arguments, message = REFUSED_ON_A_RUN[case]
    outcome = run(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert re.search(message, outcome.err, re.DOTALL), outcome.err
    assert tree(project) == before


def test_options_that_agree_with_the_run_may_be_repeated(run: Run) -> None:
    run(*tiny("raccoon", 4), *BARE, "--out", "r")
    assert run(*tiny("raccoon", 8), *BARE, "--out", "r", "--resume", "--optimizer", "adamw").status == 0


def test_a_schedule_with_an_end_is_not_stretched(run: Run) -> None:
    run(*tiny("raccoon", 4), *BARE, "--out", "r", "--scheduler", "OneCycleLR")
    outcome = run("train", "raccoon", "--resume", "--out", "r", "--steps", "8")
    assert outcome.status == 2
    assert "the schedule OneCycleLR of the run in r was laid out over its 4 steps" in outcome.err


def test_another_config_is_taken_where_it_is_meant(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*tiny("raccoon", 4), *BARE, "--out", "r")
    monkeypatch.setenv(ENVIRONMENT, "0.9.0")
    assert run("train", "raccoon", "--resume", "--out", "r", "--steps", "6", *BARE).status == 2
    assert run("train", "raccoon", "--resume", "--out", "r", "--steps", "6", *BARE, "--config", "checkpoint").status == 0
    changed = run("train", "raccoon", "--resume", "--out", "r", "--steps", "8", *BARE, "--change-config")
    assert changed.status == 0
    assert "exp.bound: dtype -> 20.0" in changed.err
    assert read_checkpoint(project / "r").config.version == "0.9.0"


@pytest.mark.parametrize(("option", "package", "extra"), [("--plots", "matplotlib", "plots"), ("--tensorboard", "tensorboard", "tensorboard")])
def test_a_missing_extra_is_said_before_training(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch, option: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    outcome = run(*tiny("raccoon"), option, "--out", "r")
    assert outcome.status == 2
    assert f"Install it with: pip install 'latent-drift[{extra}]'" in outcome.err
    assert not (project / "r").exists()


def test_without_matplotlib_a_run_ends_without_plots(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = run(*tiny("raccoon", 2), "--no-evaluate", "--out", "r")
    assert outcome.status == 0
    assert "no plots: plotting a run needs the package 'matplotlib'" in outcome.err


def test_tensorboard_events_hold_the_metrics(run: Run, project: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run(*tiny("raccoon", 3), *BARE, "--tensorboard", "--out", "r").status == 0
    events = EventAccumulator(str(project / "r" / "tensorboard"))
    events.Reload()
    losses = [json.loads(line)["loss"] for line in (project / "r/metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-6)
    assert [event.step for event in events.Scalars("lr")] == [0, 1, 2]


def test_a_full_disk_is_status_2_and_says_where_the_run_is(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*tiny("raccoon", 6), *BARE, "--out", "whole")
    elsewhere = project / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    real = os.fsync

    def full(descriptor: int) -> None:
        begun = Path("full/checkpoint.pt").exists()  # a run that cannot even begin is refused, and has nothing to put elsewhere
        if begun and "/full/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        outcome = run(*tiny("raccoon", 6), *BARE, "--out", "full", "--stop-after", "4")
    assert outcome.status == 2
    assert "full: cannot be written (No space left on device). The run, with all its 4 steps, is in" in outcome.err
    command = shlex.split(outcome.err.partition("Go on with: latent-drift ")[2].strip())
    assert run(*command, *BARE).status == 0
    assert state(Path(command[-1])) == state(project / "whole")


def _hearing() -> None:
    """A process that was started in the background would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_a_checkpoint_and_the_way_on(run: Run, project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "latent_drift", *tiny("raccoon", 100_000), *BARE, "--out", "r"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=_hearing)
    metrics = project / "r" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 3) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert "Go on with: latent-drift train raccoon --resume --out r" in err
    step = read_checkpoint(project / "r").step
    assert metrics.read_bytes().count(b"\n") == step > 3
    assert run("train", "raccoon", "--resume", "--out", "r", "--stop-after", "2", *BARE).status == 0
    assert read_checkpoint(project / "r").step == step + 2


def test_help_states_the_defaults_that_hold(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from latent_drift.training.tasks import TASKS

    monkeypatch.setenv("COLUMNS", "400")
    text = " ".join(run("train", "--help").out.split())
    ode, raccoon = (TASKS[kind].defaults for kind in ("ode", "raccoon"))
    for name in ("steps", "batch_size", "scheduler"):
        assert f"[default: ode {getattr(ode, name)}, raccoon {getattr(raccoon, name)}]" in text
    assert "[default: ode " + ",".join(f"{w:g}" for w in ode.loss_weights) + ", raccoon " + ",".join(f"{w:g}" for w in raccoon.loss_weights) in text
    for defaults in (ode, raccoon):
        assert ", ".join(f"{key}={value}" for key, value in defaults.sizes.items()) in text
        for name in ("optimizer", "precision", "data", "seed", "checkpoint_every"):
            assert f"[default: {getattr(defaults, name)}]" in text


def test_help_names_every_command_and_loads_no_torch(run: Run) -> None:
    text = run("--help").out
    for name in ("train", "sample", "classify", "evaluate", "config", "stability-test"):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    for arguments in ((), ("train",), ("classify",), ("sample",), ("evaluate",)):
        code = (
            f"import sys; sys.argv = ['latent-drift', *{arguments!r}, '--help']\n"
            "from latent_drift.cli import main\ntry:\n    main()\nexcept SystemExit as left:\n    print('torch' in sys.modules, left.code)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.endswith("False 0\n")
