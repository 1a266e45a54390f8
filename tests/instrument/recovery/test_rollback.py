"""Rolling back: the last good state returns bit for bit, the learning rate is backed off and comes back, and giving up ends the run."""

import math
import random
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import instrument
from latent_drift.errors import GiveUpError

ON = {"rollback": True, "snapshot_every": 2, "rollback_after": 2, "lr_recovery_steps": 4}


class Training:
    """A model with a normalisation layer, Adam and a schedule; the gradients of a step may be spoilt."""

    def __init__(self, schedule=None):
        torch.manual_seed(0)
        random.seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scheduler = schedule(self.optimizer) if schedule else torch.optim.lr_scheduler.StepLR(self.optimizer, 3, gamma=0.9)
        self.rates = []

    def step(self, *, bad=False):
        x = torch.randn(16, 4)
        self.optimizer.zero_grad()
        loss = (self.model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        if bad:  # what no guard can mend at a line
            for parameter in self.model.parameters():
                parameter.grad.fill_(math.nan)
        used = []
        handle = self.optimizer.register_step_pre_hook(lambda o, a, k: used.append(float(o.param_groups[0]["lr"])))
        self.optimizer.step()
        handle.remove()
        self.rates.append(used[0] if used else None)
        self.scheduler.step()
        return loss.item()

    def state(self):
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [v for s in self.optimizer.state.values() for v in s.values()]
        plain = [self.scheduler.last_epoch, self.optimizer.param_groups[0]["lr"], random.random(), torch.rand(1).item()]
        return [t.detach().clone() for t in tensors], plain


def same(a, b):
    return len(a[0]) == len(b[0]) and all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1] == b[1]


@pytest.mark.parametrize("device", ["host", "device"])
def test_parameters_buffers_optimizer_schedule_and_random_state_return_bit_for_bit(device):
    reference = Training()
    for _ in range(4):
        reference.step()
    at_four = reference.state()
    training = Training()
    with instrument.stable(profile="guard", recovery={**ON, "snapshot_device": device}) as run:
        for _ in range(5):  # copies after 2 and 4 steps; the fifth moves on
            training.step()
        training.step(bad=True)
        training.step(bad=True)
        # the schedule waits at a skipped step, but the failed steps have drawn random numbers
        after = training.state()
    assert run.tally.rolled_back == 1
    assert same(after, at_four)
    assert [e.action for e in run.events if e.op == "rollback"] == ["rolled-back"]


def test_without_rollback_the_state_stays_that_of_the_last_step():
    reference = Training()
    for _ in range(4):
        reference.step()
    at_four = reference.state()
    training = Training()
    with instrument.stable(profile="guard") as run:
        for _ in range(5):
            training.step()
        training.step(bad=True)
        training.step(bad=True)
        assert not same(training.state(), at_four)
    assert run.tally.rolled_back == 0
    assert run.facts().get("rollback") is None


def test_a_healthy_run_is_bitwise_the_same_with_rollback_on():
    plain = Training()
    losses = [plain.step() for _ in range(8)]
    before = plain.state()
    guarded = Training()
    with instrument.stable(profile="guard", recovery=ON) as run:
        assert losses == [guarded.step() for _ in range(8)]
        assert run.events == ()
        after = guarded.state()
    assert same(before, after)
    assert run.recovery.rollback.copies == 5, "at the beginning and after steps 2, 4, 6 and 8"


def test_the_learning_rate_is_backed_off_and_returns_while_a_schedule_goes_on():
    def rates(schedule, bad):
        with instrument.stable(profile="guard", recovery={**ON, "lr_backoff": 0.5}):
            training = Training(schedule)
            for index in range(14):
                training.step(bad=index in bad)
        return training

    for schedule in (
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),  # computes from the rate that it finds: a factor left there would compound
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.9**t),  # assigns anew: a factor written there would be undone
    ):
        training = rates(schedule, bad=(4, 5))
        # The copy is of right after step 4; the scheduler's call that follows a step follows the return to it as well.
        own = 0.01 * 0.9**4
        used = [r for r in training.rates if r is not None]
        assert used[:4] == pytest.approx([0.01 * 0.9**k for k in range(4)])
        factors = [r / (own * 0.9**k) for k, r in enumerate(used[4:])]
        assert factors[:5] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0], rel=1e-6)
        assert factors[5:] == pytest.approx([1.0] * len(factors[5:]), rel=1e-6)
        assert training.optimizer.param_groups[0]["lr"] == pytest.approx(own * 0.9 ** (len(used) - 4))


def test_repeated_returns_to_one_copy_back_off_further_and_then_give_up():
    training = Training(lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0))
    factors = []
    # Watched, the line that spoils the gradients would be mended.
    with instrument.stable(profile="guard", anomaly={"watch_steps": 0}, recovery={**ON, "retries": 2, "snapshot_every": 100}) as run:
        training.step()
        for _ in range(2):
            training.step(bad=True)
            training.step(bad=True)
            factors.append(run.recovery.rates.factor)
        training.step(bad=True)
        with pytest.raises(GiveUpError, match=r"rolled back to the same good state \(of step 0\) 2 times"):
            training.step(bad=True)
    assert factors == [0.5, 0.25]
    assert all(torch.isfinite(p).all() for p in training.model.parameters())


def test_the_second_return_to_a_copy_does_not_repeat_its_draws():
    training = Training()
    draws = []
    with instrument.stable(profile="guard", anomaly={"watch_steps": 0}, recovery={**ON, "rollback_after": 1, "snapshot_every": 100}):
        for _ in range(3):
            training.step(bad=True)
            draws.append(torch.rand(1).item())
    assert len(set(draws[1:])) == 2


def test_broken_parameters_are_rolled_back_at_once():
    training = Training()
    with instrument.stable(profile="guard", recovery={**ON, "rollback_after": 50}) as run:
        for _ in range(4):
            training.step()
        good = training.model[0].weight.detach().clone()
        training.model[0].weight.data.fill_(math.nan)
        training.step()
    assert run.tally.rolled_back == 1
    assert torch.isfinite(training.model[0].weight).all()
    assert torch.equal(training.model[0].weight, good)


def test_the_memory_is_stated_and_right():
    training = Training()
    with instrument.stable(profile="guard", recovery=ON) as run:
        for _ in range(4):
            training.step()
    tensors = [*training.model.parameters(), *training.model.buffers()]
    tensors += [v for s in training.optimizer.state.values() for v in s.values()]
    assert run.recovery.rollback.bytes == sum(t.nbytes for t in tensors)
    assert run.facts()["rollback"]["mib"] == pytest.approx(run.recovery.rollback.bytes / 2**20, abs=1e-3)
    assert "MiB" in run.summary()


def test_several_optimizers_return_together():
    torch.manual_seed(0)
    nets = [nn.Linear(3, 3), nn.Linear(3, 3)]
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.1) for net in nets]
    with instrument.stable(profile="guard", recovery={**ON, "rollback_after": 1}) as run:
        for index in range(7):
            for net, optimizer in zip(nets, optimizers, strict=True):
                if index == 5 and net is nets[0]:
                    kept = [p.detach().clone() for n in nets for p in n.parameters()]
                bad = math.nan if index == 5 and net is nets[1] else 1.0
                optimizer.zero_grad()
                (net(torch.ones(2, 3)) * bad).pow(2).mean().backward()
                optimizer.step()
                if index == 5 and net is nets[1]:
                    after = [p.detach().clone() for n in nets for p in n.parameters()]
    assert run.tally.rolled_back == 1
    assert all(torch.isfinite(p).all() for n in nets for p in n.parameters())
    assert all(torch.equal(a, b) for a, b in zip(kept[:2], after[:2], strict=True)), "the other optimizer's parameters went back as well"


def test_parameters_updated_by_hand_return():
    w = nn.Parameter(torch.ones(3))
    with instrument.stable(profile="guard", recovery={**ON, "rollback_after": 1, "snapshot_every": 1}) as run:
        for index in range(6):
            w.grad = None
            (w * (math.nan if index == 4 else 1.0)).pow(2).sum().backward()
            w.data -= 0.1 * w.grad
    assert run.tally.rolled_back == 1
    assert torch.isfinite(w).all()


SCRIPT = """
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Linear(3, 1)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(200):
    loss = net(torch.randn(8, 3)).pow(2).mean()
    opt.zero_grad()
    loss.backward()
    if step > 20:
        net.weight.grad[0, 0] = float("nan")
    opt.step()
"""


def test_giving_up_ends_the_runner_with_status_3_and_the_report(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    config = tmp_path / "own.toml"
    config.write_text(
        textwrap.dedent(
            """
            version = "1.0.0"
            [recovery]
            rollback = true
            snapshot_every = 5
            retries = 2
            """
        )
    )
    command = [sys.executable, "-m", "instrument", "run", "--config", str(config), "--report", str(tmp_path / "out"), str(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 3, result.stderr
    assert "rolled back to the same good state" in result.stderr
    assert (tmp_path / "out" / "events.jsonl").stat().st_size > 0
    assert '"rolled_back": 2' in (tmp_path / "out" / "summary.json").read_text()
