"""Two models that train in turn, and several in threads: what is done for one must not reach into the graph, or the numbers, of another."""

from __future__ import annotations

import math
import sys
import threading
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

import instrument

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


def line_of(text):
    found = [i for i, line in enumerate(LINES, start=1) if line.endswith(f"# {text}")]
    assert len(found) == 1, text
    return found[0]


def _nets():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    critic = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    return generator, critic


def _adversarial(generator, critic, bad_at, steps=20):
    """The generator's graph waits while the critic steps."""
    slow, fast = torch.optim.Adam(generator.parameters(), 1e-3), torch.optim.Adam(critic.parameters(), 1e-3)
    judge = nn.BCEWithLogitsLoss()
    for step in range(steps):
        z = torch.randn(16, 4)
        if step == bad_at:
            z[3] = math.nan  # the data goes bad
        fake = generator(z)
        fast.zero_grad()
        (judge(critic(torch.randn(16, 2)), torch.ones(16, 1)) + judge(critic(fake.detach()), torch.zeros(16, 1))).backward()
        fast.step()
        slow.zero_grad()
        judge(critic(fake), torch.ones(16, 1)).backward()
        slow.step()


@pytest.mark.parametrize("recovery", [{}, {"rollback": True, "rollback_after": 1, "snapshot_every": 1}], ids=["buffers", "rollback"])
def test_what_is_put_back_for_one_model_leaves_the_others_graph_usable(recovery):
    generator, critic = _nets()
    with instrument.stable(recovery=recovery) as run:
        _adversarial(generator, critic, bad_at=12)
    assert "NS808" in {e.code for e in run.events} or run.tally.rolled_back
    for net in (generator, critic):
        assert all(torch.isfinite(t).all() for t in (*net.parameters(), *net.buffers()))


def test_negative_control_a_buffer_written_in_autograds_sight_stops_the_other_model():
    generator, _ = _nets()
    fake = generator(torch.randn(16, 4))
    generator[1].running_mean.detach().copy_(torch.zeros(8))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fake.sum().backward()


def test_data_is_followed_through_what_was_detached():
    generator, critic = _nets()
    with instrument.stable() as run:
        _adversarial(generator, critic, bad_at=12)
    cause = run.first_cause
    assert (cause.code, cause.line) == ("NS803", line_of("the data goes bad"))
    assert "the data z of shape (16, 4) holds NaN in 1 of 16 rows (3)" in cause.message


class _Overflowing(nn.Module):
    """Fails once, in the middle of the run."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1e39 if self.calls == 8 else 1.0)  # overflow


def test_what_a_generator_made_bad_is_not_called_data():
    generator, critic = _nets()
    with instrument.stable(profile="guard") as run:
        _adversarial(nn.Sequential(generator, _Overflowing()), critic, bad_at=-1)
    assert (run.first_cause.code, run.first_cause.line) == ("NS805", line_of("overflow"))


def _train_in_a_thread(seed, errors, steps=8):
    try:
        draws = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1) if seed % 2 else torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(steps):
            optimizer.zero_grad()
            x = torch.randn(8, 4, generator=draws)
            y = model(x)
            if step % 3 == 1:
                y = (y - y.detach()) / (0.0 * y.detach())
            if step % 4 == 2:
                y = (y - y.detach()).sqrt() + torch.log(y - y.detach())
            if step % 5 == 4:
                y = y * 1e30 * 1e30
            y.pow(2).mean().backward()
            optimizer.step()
        assert all(torch.isfinite(p).all() for p in model.parameters())
    except BaseException:
        errors.append(traceback.format_exc())


def test_threads_that_fail_at_once_keep_out_of_one_anothers_way(caplog):
    before = torch.autograd.Function.__dict__["apply"], torch.ScriptMethod.__call__
    errors: list[str] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with instrument.stable():
            threads = [threading.Thread(target=_train_in_a_thread, args=(seed, errors)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert (torch.autograd.Function.__dict__["apply"], torch.ScriptMethod.__call__) == before
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == []


def test_a_thread_that_ended_while_it_was_watched_leaves_nothing():
    before = torch.autograd.Function.__dict__["apply"]

    def fails_and_ends():
        p = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([p], lr=0.1)
        (p * 1e30 * 1e30).sum().backward()  # what no guard covers: the next step would be watched
        optimizer.step()

    with instrument.stable() as run:
        thread = threading.Thread(target=fails_and_ends)
        thread.start()
        thread.join()
        assert run.search.watch.is_on, "negative control"
    assert torch.autograd.Function.__dict__["apply"] is before


def test_an_optimizer_that_is_being_made_is_not_met_yet():
    half_made = torch.optim.SGD.__new__(torch.optim.SGD)  # as another thread's is, before its __init__ has run
    w = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], lr=0.1)
    with instrument.stable() as run:
        w.square().sum().backward()
        optimizer.step()
    assert optimizer in run.optimizers
    assert half_made not in list(run.optimizers)
