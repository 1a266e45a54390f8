"""Snapshots: after a restore, training continues bit for bit as if the steps in between had not been."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.numerics.snapshot import ModuleSnapshot, OptimizerSnapshot, Snapshot


class Tied(nn.Module):
    """Embedding and output share their weight; a batch norm has buffers; dropout draws."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.dropout(self.norm(self.embedding(tokens).mean(1))))


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "adamw_tensor_lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2), capturable=False),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "sgd_without_state": lambda p: torch.optim.SGD(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=3),
}


class Run:
    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.model = Tied()
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def step(self) -> float:
        tokens = torch.randint(0, 11, (6, 4))
        labels = torch.randint(0, 11, (6,)) + random.randint(0, 0)
        offset = random.random() + float(np.random.rand())

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(tokens), labels) + offset
            if isinstance(self.optimizer, torch.optim.LBFGS):
                loss.backward()
            else:
                self.scaler.scale(loss).backward()
            return loss

        if isinstance(self.optimizer, torch.optim.LBFGS):
            loss = self.optimizer.step(closure)
        else:
            loss = closure()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.scheduler.step()
        return float(loss.detach())

    def snapshot(self, **options: object) -> Snapshot:
        return Snapshot(self.model, self.optimizer, [self.scheduler, self.scaler], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3], ids=["before-the-first-step", "after-three-steps"])
def test_the_future_repeats_itself_bit_for_bit(kind: str, before: int) -> None:
    run = Run(kind)
    for _ in range(before):
        run.step()
    snapshot = run.snapshot()
    future = [run.step() for _ in range(4)]
    for _ in range(2):  # may be repeated
        snapshot.restore()
        assert [run.step() for _ in range(4)] == future
    snapshot.restore()
    assert run.scaler.get_scale() == 4.0 * 2 ** (before // 2 if kind != "lbfgs" else 0)


def test_tied_weights_stay_tied_where_a_deepcopied_state_unties_or_doubles_them() -> None:
    run = Run("adamw")
    weight = run.model.embedding.weight
    snapshot = ModuleSnapshot(run.model)
    assert len(snapshot._values) == 6  # one weight, two of the norm, three buffers
    run.step()
    run.model.out.weight = nn.Parameter(torch.zeros(11, 8))  # somebody unties it meanwhile
    snapshot.restore()
    assert run.model.out.weight is run.model.embedding.weight
    assert run.model.embedding.weight is weight


def test_state_tensors_are_copied_into_where_load_state_dict_replaces_them() -> None:
    run = Run("adamw")
    run.step()
    weight = run.model.embedding.weight
    held = run.optimizer.state[weight]["exp_avg"]
    saved, value = copy.deepcopy(run.optimizer.state_dict()), held.clone()
    snapshot = OptimizerSnapshot(run.optimizer)
    run.step()
    snapshot.restore()
    assert run.optimizer.state[weight]["exp_avg"] is held
    assert torch.equal(held, value)
    run.optimizer.load_state_dict(saved)
    assert run.optimizer.state[weight]["exp_avg"] is not held  # negative control


def test_the_snapshot_shares_no_memory_with_the_run() -> None:
    run = Run("adamw")
    run.step()
    snapshot = run.snapshot()
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    with torch.no_grad():
        for tensor in run.model.state_dict().values():
            tensor.zero_()
        for state in run.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
    snapshot.restore()
    assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    assert run.optimizer.state[run.model.embedding.weight]["step"].item() == 1
    with torch.no_grad():
        run.model.embedding.weight.fill_(torch.nan)
    snapshot.restore()
    assert run.model.embedding.weight.isfinite().all()


def test_hyperparameters_modes_groups_and_rebound_buffers_return() -> None:
    run = Run("adamw")
    run.model.dropout.eval()
    snapshot = run.snapshot()
    buffer = run.model.norm.running_mean
    run.optimizer.param_groups[0]["lr"] = 7.0
    run.optimizer.param_groups[0]["added"] = 1
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    run.model.train()
    run.model.norm.running_mean = torch.ones(8)
    run.step()
    snapshot.restore()
    assert len(run.optimizer.param_groups) == 1
    assert run.optimizer.param_groups[0]["lr"] == 1e-2
    assert "added" not in run.optimizer.param_groups[0]
    assert not run.model.dropout.training
    assert run.model.norm.training
    assert run.model.norm.running_mean is buffer
    assert (buffer == 0).all()


def test_state_born_after_the_snapshot_is_gone_again() -> None:
    run = Run("adamw")
    snapshot = run.snapshot()
    run.step()
    assert run.optimizer.state
    snapshot.restore()
    assert not run.optimizer.state


def test_refresh_moves_the_point_of_return_without_new_memory_for_weights() -> None:
    run = Run("sgd")
    snapshot = run.snapshot()
    part = next(p for p in snapshot._parts if isinstance(p, ModuleSnapshot))
    memory = {k: v[1].data_ptr() for k, v in part._values.items()}
    run.step()
    snapshot.refresh()
    assert {k: v[1].data_ptr() for k, v in part._values.items()} == memory
    future = run.step()
    snapshot.restore()
    assert run.step() == future
    assert snapshot.bytes() > 11 * 8 * 4


def test_random_state_and_given_generators_are_part_of_it_unless_told_otherwise() -> None:
    generator = torch.Generator().manual_seed(1)
    snapshot = Snapshot(generators=[generator])
    first = (torch.rand(2, generator=generator), torch.rand(2), random.random(), np.random.rand())
    snapshot.restore()
    again = (torch.rand(2, generator=generator), torch.rand(2), random.random(), np.random.rand())
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, again, strict=True))
    without = Snapshot(random=False)
    a = torch.rand(1)
    without.restore()
    assert not torch.equal(a, torch.rand(1))


def test_weights_tied_across_two_modules_are_copied_once() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    names = set(second._modules), set(first._modules)
    snapshot = Snapshot([first, second], random=False)
    assert snapshot.bytes() == 4 * (9 + 3 + 3)
    with torch.no_grad():
        first.weight.fill_(5)
    snapshot.restore()
    assert (second.weight != 5).all()
    assert (set(second._modules), set(first._modules)) == names


def test_extra_state_and_frozen_and_nan_values_return_exactly() -> None:
    class Extra(nn.Linear):
        note: list[int]

        def get_extra_state(self) -> list[int]:
            return self.note

        def set_extra_state(self, state: list[int]) -> None:
            self.note = state

    module = Extra(2, 2)
    module.note = [1]
    module.weight.requires_grad_(False)
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    snapshot = Snapshot(module)
    module.note = [2]
    module.weight.zero_()
    snapshot.restore()
    assert module.note == [1]
    assert module.weight[0, 0].isnan()
    assert not module.weight.requires_grad


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no shape yet"):
        Snapshot(nn.LazyLinear(3))
    with pytest.raises(UsageError, match="modules takes Module objects; got str"):
        Snapshot(["a"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="storage must be"):
        Snapshot(storage="disk")  # type: ignore[arg-type]
