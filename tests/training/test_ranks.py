"""Two processes are one: the same losses, the same decisions, one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from latent_drift.config import load
from latent_drift.errors import UsageError
from latent_drift.models.distributed import batch_noise_like
from latent_drift.training.checkpoint import read_checkpoint
from latent_drift.training.ranks import Ranks, process_group
from latent_drift.training.run import Record, TrainingRun
from latent_drift.training.run_folder import RunFolder
from tests.training.conftest import Start, folder, same, tiny

pytestmark = pytest.mark.xdist_group("two_ranks")

ROOT = Path(__file__).parents[2]
LOSS_RTOL = 2e-6
"""float32: sums of two halves against sums of the whole, 17 of its ulp over up to 20 steps of training (2e-7 and less was measured)."""


def _scenarios(rank: int, where: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{where}/store", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, rank)
    torch.manual_seed(3)
    noise = batch_noise_like(torch.empty(5, 4))
    out: dict[str, Any] = {"noise": noise, "mean": ranks.mean([rank + 1.0, 4.0], torch.device("cpu"))}
    for kind in ("ode", "raccoon"):
        records: list[Record] = []
        run = TrainingRun(tiny(kind, 12), load(), torch.device("cpu"), ranks, on_step=records.append)
        path = Path(where) / kind
        run.train(folder(path) if rank == 0 else RunFolder(path))
        out[kind] = {"weights": dict(run.model.state_dict()), "records": records, "directions": run.model.latent_test.directions(torch.empty(1, 4))}
    out["skips"] = _one_bad_gradient(rank, ranks, Path(where))
    out["left_at"] = _one_is_asked_to_stop(rank, ranks, Path(where))
    out["failures"] = _failures(ranks)
    torch.save(out, f"{where}/{rank}.pt")
    dist.destroy_process_group()


def _one_bad_gradient(rank: int, ranks: Ranks, where: Path) -> list[int]:
    run = TrainingRun(tiny("raccoon", 5), load(), torch.device("cpu"), ranks)
    if rank == 1:
        calls = iter(range(100))
        run.model.enc_mean.register_forward_hook(lambda module, inputs, output: output * float("nan") if next(calls) == 2 else None)  # type: ignore[union-attr, operator]
    run.train(folder(where / "bad") if rank == 0 else None)
    return [run.step, run._optimizer_step.consecutive_skips, int(run.schedule.state_dict()["last_epoch"])]


def _one_is_asked_to_stop(rank: int, ranks: Ranks, where: Path) -> int:
    import signal

    run = TrainingRun(tiny("raccoon"), load(), torch.device("cpu"), ranks)
    if rank == 1:
        calls = iter(range(100))
        run.model.enc_mean.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGTERM) if next(calls) == 4 else None)  # type: ignore[union-attr, operator]
    end = run.train(folder(where / "left") if rank == 0 else None)
    assert not end.finished
    return end.step


def _failures(ranks: Ranks) -> list[str]:
    def refuse() -> None:
        raise UsageError("--out: holds a run already")

    try:
        ranks.from_first(refuse)
    except UsageError as failure:
        return [type(failure).__name__, str(failure)]
    return []


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What each of two processes found, in one pair: starting them is what takes the time."""
    where = tmp_path_factory.mktemp("ranks")
    mp.spawn(_scenarios, args=(str(where),), nprocs=2)
    return where, [torch.load(where / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("kind", ["ode", "raccoon"])
def test_losses_are_those_of_one_process(on_two_ranks: tuple[Path, list[dict[str, Any]]], start: Start, kind: str) -> None:
    _, (first, second) = on_two_ranks
    alone: list[Record] = []
    start(tiny(kind, 12), on_step=alone.append).train(None)
    assert second[kind]["records"] == []  # only the first process tells
    for one, two in zip(alone, first[kind]["records"], strict=True):
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=LOSS_RTOL), (name, one["step"])
    assert same(first[kind]["weights"], second[kind]["weights"])
    assert torch.equal(first[kind]["directions"], second[kind]["directions"])


def test_without_shared_noise_the_losses_would_differ(
    on_two_ranks: tuple[Path, list[dict[str, Any]]], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: other noise for the same batch moves the losses far beyond the tolerance."""
    monkeypatch.setattr("latent_drift.models.raccoon.batch_noise_like", lambda x: torch.randn_like(x[: x.shape[0] // 2]).repeat(2, 1))
    alone: list[Record] = []
    start(tiny("raccoon", 12), on_step=alone.append).train(None)
    pairs = zip(alone, on_two_ranks[1][0]["raccoon"]["records"], strict=True)
    assert any(abs(one["loss"] - two["loss"]) > 100 * LOSS_RTOL * abs(one["loss"]) for one, two in pairs)


def test_noise_is_the_rows_of_one_draw(on_two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    torch.manual_seed(3)
    whole = torch.randn(10, 4)
    first, second = (found["noise"] for found in on_two_ranks[1])
    assert torch.equal(torch.cat([first, second]), whole)


def test_decisions_are_common(on_two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    where, (first, second) = on_two_ranks
    assert first["mean"] == second["mean"] == [1.5, 4.0]
    assert first["skips"] == second["skips"] == [5, 0, 4]  # five steps, the schedule stood still for the one that both skipped
    skipped = [json.loads(line)["skipped"] for line in (where / "bad" / "metrics.jsonl").read_text().splitlines()]
    assert skipped == [False, False, True, False, False]
    assert first["left_at"] == second["left_at"] == read_checkpoint(where / "left").step == 5
    assert first["failures"] == ["UsageError", "--out: holds a run already"]
    assert second["failures"] == ["FirstRankError", "--out: holds a run already"]


_TELL_THREADS = """
import atexit, glob, os

def tell():
    names = [open(path).read().strip() for path in glob.glob("/proc/self/task/*/comm")]
    with open(os.path.join(os.path.dirname(__file__), "threads-of-" + os.environ["RANK"]), "w") as file:
        file.write(" ".join(names))

if "RANK" in os.environ:
    atexit.register(tell)
"""


def test_torchrun_starts_the_command(tmp_path: Path, start: Start) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    sizes = [word for name, value in {"latent_dim": 4, "hidden_dim": 9, "embed_dim": 4}.items() for word in ("--size", f"{name}={value}")]
    command = [str(torchrun), "--standalone", "--nproc-per-node", "2", "-m", "latent_drift.cli", "train", "raccoon", "--steps", "20", *sizes]
    command += ["--batch-size", "6", "--data", "synthetic:samples=50", "--checkpoint-every", "1000", "--out", "run", "--no-plots", "--no-evaluate"]
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(_TELL_THREADS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(hook), str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path / "project")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run\n"
    assert done.stderr.count("2 processes") == 1
    for rank in range(2):
        # A thread of the process group that still runs when the interpreter ends can abort the process there, once in many runs.
        left = (hook / f"threads-of-{rank}").read_text().split()
        assert [name for name in left if "gloo" in name] == []
    alone: list[Record] = []
    start(tiny("raccoon"), on_step=alone.append).train(None)
    both = [json.loads(line) for line in (tmp_path / "project" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [two["loss"] for two in both] == pytest.approx([one["loss"] for one in alone], rel=LOSS_RTOL)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    from latent_drift.training.batches import Batches
    from latent_drift.training.data import TensorData

    with pytest.raises(UsageError, match=r"--batch-size 7 cannot be shared evenly by 2 processes; take a multiple of 2"):
        Batches(TensorData((torch.zeros(3),)), 7, 0, 0, 2)


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UsageError, match=r"LOCAL_RANK, .*torchrun --nproc-per-node"), process_group("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group("cpu") as ranks:
        assert ranks == Ranks()
