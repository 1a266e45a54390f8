"""Persistent or transient: planted faults of both kinds, and what cannot be told."""

import math

import pytest
import torch
from torch import nn

import instrument


class Overflowing(nn.Module):
    """A fault in the numbers: a power that overflows for the larger inputs, with dropout and running statistics around it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 1)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        h = nn.functional.dropout(self.norm(x), 0.3) * torch.rand(1)
        return self.out(h) * x.abs().amax().double().mul(1e200).pow(2).float()


class Flaky(nn.Module):
    """A fault in the machine: every third call gives NaN, whatever the numbers are."""

    def __init__(self, every=3):
        super().__init__()
        self.out = nn.Linear(4, 1)
        self.machine = {"calls": 0, "every": every}

    def forward(self, x):
        self.machine["calls"] += 1
        result = self.out(x)
        if self.machine["calls"] % self.machine["every"] == 0:
            result = result + torch.full_like(result, math.nan)
        return result


def train(model, steps=12, loss_of=None, **config):
    torch.manual_seed(0)
    # The watching mode would mend the planted line: here the verdict is what is looked at.
    with instrument.stable(profile="guard", anomaly={"watch_steps": 0}, **config) as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for index in range(steps):
            loss = model(torch.randn(8, 4)).pow(2).mean() if loss_of is None else loss_of(model, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return run


def test_a_fault_in_the_numbers_is_persistent():
    model = Overflowing()
    run = train(model)
    assert [v.kind for v in run.recovery.verdicts.given] == ["persistent"]
    assert "Overflowing gives the same bits again" in run.recovery.verdicts.given[0].reason
    assert any(e.op == "replay" and e.message.startswith("persistent") for e in run.events)
    assert run.facts()["verdicts"][0]["kind"] == "persistent"


def test_a_fault_of_the_machine_is_transient():
    run = train(Flaky())
    assert [v.kind for v in run.recovery.verdicts.given] == ["transient"]
    assert [e.code for e in run.events if e.op == "replay"] == ["NS809"]


def test_bad_data_is_persistent():
    model = nn.Linear(4, 1)
    run = train(model, loss_of=lambda m, i: m(torch.randn(8, 4) * (math.nan if i > 3 else 1.0)).pow(2).mean())
    assert [v.kind for v in run.recovery.verdicts.given] == ["persistent"]


def test_a_fault_that_never_comes_back_is_unknown():
    model = nn.Linear(4, 1)
    run = train(model, loss_of=lambda m, i: m(torch.randn(8, 4) * (math.nan if i == 3 else 1.0)).pow(2).mean())
    (verdict,) = run.recovery.verdicts.given
    assert verdict.kind == "unknown"
    assert "did not come back" in verdict.reason


def test_a_fault_behind_the_model_is_unknown():
    model = nn.Linear(4, 1)
    run = train(model, loss_of=lambda m, i: m(torch.randn(8, 4)).pow(2).mean() * (math.nan if i > 3 else 1.0))
    assert {v.kind for v in run.recovery.verdicts.given} == {"unknown"}
    assert "not replayed" in run.recovery.verdicts.given[0].reason


def test_a_replay_leaves_no_side_effect():
    def run(**config):
        torch.manual_seed(1)
        model = Overflowing()
        guarded = train(model, **config)
        return model, guarded, torch.rand(3)

    plain, without, draws = run(recovery={"replay": False})
    replayed, with_replay, same_draws = run()
    assert without.recovery.verdicts.given == []
    assert with_replay.recovery.verdicts.given
    assert torch.equal(draws, same_draws)
    assert plain.calls == replayed.calls == 12
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), replayed.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), replayed.parameters(), strict=True))
    counts = lambda run: {(e.code, e.action, e.op): e.count for e in run.events if e.op != "replay"}  # noqa: E731
    assert counts(without) == counts(with_replay)


def test_a_healthy_run_keeps_nothing():
    from torch.nn.modules import module as hooks

    seen = []
    model = nn.Linear(4, 1)

    def loss_of(m, index):
        seen.append(len(hooks._global_forward_pre_hooks))
        return m(torch.randn(8, 4)).pow(2).mean()

    run = train(model, loss_of=loss_of)
    assert set(seen) == {0}
    assert run.recovery.verdicts.given == []


def test_the_hooks_are_gone_after_the_block():
    from torch.nn.modules import module as hooks

    before = len(hooks._global_forward_pre_hooks), len(hooks._global_forward_hooks)
    train(nn.Linear(4, 1), loss_of=lambda m, i: m(torch.randn(8, 4)).pow(2).mean() * (math.nan if i == 2 else 1.0))
    assert before == (len(hooks._global_forward_pre_hooks), len(hooks._global_forward_hooks))


@pytest.mark.parametrize("keywords", [False, True])
def test_arguments_by_name_and_nested_are_replayed(keywords):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 1)

        def forward(self, batch, scale=1.0):
            batch["x"].mul_(2.0)  # in place: the replay needs what went in
            return self.out(batch["x"]) * scale

    def loss_of(m, index):
        scale = torch.tensor(math.inf if index in (3, 4) else 1.0)
        batch = {"x": torch.ones(2, 4)}
        return (m(batch, scale=scale) if keywords else m(batch, scale)).pow(2).mean()

    run = train(Nested(), loss_of=loss_of)
    assert [v.kind for v in run.recovery.verdicts.given] == ["persistent"]


def test_no_hook_is_left_behind():
    tables = [name for name in vars(torch.nn.modules.module) if name.startswith("_global_") and name.endswith(("hooks", "called", "with_kwargs"))]
    assert len(tables) >= 6
    before = {name: dict(getattr(torch.nn.modules.module, name)) for name in tables}
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with instrument.stable() as run:
        for step in range(4):
            optimizer.zero_grad()
            (net(torch.randn(4, 3)).mean() * (float("nan") if step == 1 else 1.0)).backward()
            optimizer.step()
    assert run.recovery.verdicts.given, "calls were kept, or nothing is shown"
    assert {name: dict(getattr(torch.nn.modules.module, name)) for name in tables} == before
    assert not torch.nn.modules.module._has_any_global_hook()
