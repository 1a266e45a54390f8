"""Checkpoints, rollback and the adaptive schedule."""

from __future__ import annotations

import math
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from latent_drift.errors import GiveUpError, NumericalError, UsageError
from latent_drift.stability import AdaptiveLR, DynamicLossScaler, RollbackGuard, load_checkpoint, save_checkpoint_with_validation
from latent_drift.training.run_folder import write_whole


def _parts() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, bad: bool = False) -> torch.Tensor:
    optimizer.zero_grad()
    loss = model(torch.randn(8, 4)).square().mean() * (math.nan if bad else 1.0)
    loss.backward()
    optimizer.step()
    scheduler.step()
    return loss


def test_a_full_disk_is_the_systems_error_and_not_torchs(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    program = """
import resource, sys, torch
from latent_drift.stability import save_checkpoint_with_validation
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    with open(sys.argv[1] + "/plain.pt", "wb") as file:
        torch.save(torch.nn.Linear(600, 600).state_dict(), file)
except Exception as error:
    print(type(error).__name__)
try:
    save_checkpoint_with_validation(torch.nn.Linear(600, 600), sys.argv[1] + "/a.pt")
except OSError as error:
    print(error.strerror)
"""
    assert resource.RLIMIT_FSIZE is not None
    found = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split("\n")[:2] == ["RuntimeError", "File too large"]
    assert not list(tmp_path.glob("*a.pt*"))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_a_checkpoint_has_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with tempfile.NamedTemporaryFile(dir=tmp_path) as private:  # what such files are made with: nobody else may read
            assert stat.S_IMODE(os.stat(private.name).st_mode) == 0o600
        path = save_checkpoint_with_validation(nn.Linear(2, 1), tmp_path / "a.pt")
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        path.chmod(0o604)
        save_checkpoint_with_validation(nn.Linear(2, 1), path)
        assert [stat.S_IMODE(file.stat().st_mode) for file in sorted(tmp_path.iterdir())] == [0o604, 0o604]
        write_whole(tmp_path / "run.json", b"{}")
        assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


def test_a_checkpoint_goes_round_and_keeps_the_previous_one(tmp_path: Path) -> None:
    model, optimizer, scheduler = _parts()
    scaler = DynamicLossScaler(device="cpu")
    _step(model, optimizer, scheduler)
    path = save_checkpoint_with_validation(model, tmp_path / "deep" / "a.pt", optimizer, scheduler, scaler, epoch=1, config={"x": 1})
    _step(model, optimizer, scheduler)
    save_checkpoint_with_validation(model, path, optimizer, scheduler, scaler, epoch=2)
    other, other_optimizer, other_scheduler = _parts()
    content = load_checkpoint(path, other, other_optimizer, other_scheduler, DynamicLossScaler(device="cpu"))
    assert content["epoch"] == 2
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other_scheduler.get_last_lr() == scheduler.get_last_lr()
    assert load_checkpoint(str(path) + ".previous")["epoch"] == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.pt", "a.pt.previous"]
    with pytest.raises(UsageError, match="holds no scaler"):
        load_checkpoint(save_checkpoint_with_validation(model, tmp_path / "b.pt"), scaler=scaler)
    with pytest.raises(UsageError, match="cannot be an extra"):
        save_checkpoint_with_validation(model, path, optimizer_state=1, model_state=2, format=3)


def test_path_and_optimizer_come_in_either_order(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    first = save_checkpoint_with_validation(model, tmp_path / "a.pt", optimizer, epoch=1)
    second = save_checkpoint_with_validation(model, optimizer, str(tmp_path / "b.pt"), epoch=1)
    assert load_checkpoint(first)["optimizer"] == load_checkpoint(second)["optimizer"] == optimizer.state_dict()
    with pytest.raises(UsageError, match="path: expected the name of a file, got NoneType"):
        save_checkpoint_with_validation(model, optimizer)


def test_parameters_that_are_not_finite_are_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    model, optimizer, _ = _parts()
    path = save_checkpoint_with_validation(model, tmp_path / "a.pt", optimizer)
    before = path.read_bytes()
    with torch.no_grad():
        model[0].bias[0] = math.nan
    with pytest.raises(NumericalError, match=r"0\.bias.*1 NaN"):
        save_checkpoint_with_validation(model, path, optimizer)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_torn_file_falls_back_to_the_previous_one(tmp_path: Path) -> None:
    model, _, _ = _parts()
    path = save_checkpoint_with_validation(model, tmp_path / "a.pt", epoch=1)
    save_checkpoint_with_validation(model, path, epoch=2)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=True)  # negative control
    content = load_checkpoint(path)
    assert content["epoch"] == 1
    assert content["loaded_from"].endswith(".previous")
    (tmp_path / "a.pt.previous").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")


def test_loading_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    torch.save({"model": {}, "evil": Evil()}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="cannot be read"):
        load_checkpoint(tmp_path / "x.pt")


_WRITER = """
import sys, torch
from latent_drift.stability import save_checkpoint_with_validation
model = torch.nn.Linear(600, 600)
for epoch in range(10_000):
    save_checkpoint_with_validation(model, sys.argv[1], epoch=epoch)
    print(epoch, flush=True)
"""


def test_a_process_killed_while_it_writes_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    while not list(tmp_path.glob(".a.pt.*")):  # in the middle of writing
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    content = load_checkpoint(path, nn.Linear(600, 600))
    assert content["epoch"] >= 2
    assert content["loaded_from"] == str(path)


def test_rollback_returns_bit_for_bit_and_lowers_the_rate() -> None:
    model, optimizer, scheduler = _parts()
    guard = RollbackGuard(model, optimizer, scheduler, every=2, after=2, retries=2, lr_backoff=0.5)
    for _ in range(4):
        assert guard.check(_step(model, optimizer, scheduler))
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    moment = optimizer.state[model[0].weight]["exp_avg"]
    value, rate = moment.clone(), optimizer.param_groups[0]["lr"]
    random_state = torch.get_rng_state()
    assert not guard.check(_step(model, optimizer, scheduler, bad=True))
    assert model[0].weight.isnan().any()
    assert not guard.check(_step(model, optimizer, scheduler, bad=True))
    assert guard.rollbacks == 1
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert model[2].weight is model[0].weight
    assert optimizer.state[model[0].weight]["exp_avg"] is moment
    assert torch.equal(moment, value)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate * 0.5)
    assert guard.check(_step(model, optimizer, scheduler))
    for _ in range(2):
        guard.check(math.nan)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate * 0.25)
    guard.check(math.nan)
    with pytest.raises(GiveUpError, match="went bad again"):
        guard.check(math.nan)


def test_bad_parameters_are_seen_without_a_loss() -> None:
    model, optimizer, scheduler = _parts()
    guard = RollbackGuard(model, optimizer, scheduler, after=1)
    assert guard.check()
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf
    assert not guard.check(1.0)
    assert guard.check()


def test_adaptive_lr_backs_off_recovers_and_resumes() -> None:
    w = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([w], lr=1.0)
    scheduler = AdaptiveLR(optimizer, warmup=10, recovery=1.5)
    for i in range(30):
        optimizer.step()
        scheduler.step(1.0 + 0.01 * (i % 3))
    assert scheduler.get_last_lr() == [1.0]
    for norm, expected in ((80.0, 0.5), (math.nan, 0.25), (1.0, 0.375), (1.0, 0.5625)):
        scheduler.step(norm)
        assert scheduler.get_last_lr() == [pytest.approx(expected)]
    assert all(n < 2 for n in scheduler._history.norms)  # excursions and NaN never enter
    saved = scheduler.state_dict()
    other = AdaptiveLR(torch.optim.SGD([w], lr=1.0), warmup=10, recovery=1.5)
    other.load_state_dict(saved)
    for s in (scheduler, other):
        s.step(1.0)
    assert other.get_last_lr() == scheduler.get_last_lr()
    w.grad = torch.full((1,), 500.0)
    scheduler.step()  # measured from the gradients
    assert scheduler.factor < other.factor
    with pytest.raises(UsageError, match="backoff"):
        AdaptiveLR(optimizer, backoff=2.0)
