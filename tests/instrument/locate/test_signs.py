"""Warning signs have a line and a number, alter nothing, and do not occur in runs that are only noisy."""

import math
import random

import pytest
import torch
from torch import nn

import instrument
from instrument.history import History
from instrument.locate.signs import LEAST_PAST, NEVER_LEARNED, Signs


def signs_of(losses, norms=None, **overrides):
    settings = {"spike_ratio": 10.0, "warn_norm": 100.0, "dead_steps": 30, "checks": ("spike", "dead"), **overrides}
    signs, history = Signs(**settings), History()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    found = []
    for step, (loss, norm) in enumerate(zip(losses, norms or [1.0] * len(losses), strict=True), start=1):
        history.loss, history.norm = loss, norm
        history.finish_step(step, optimizer)
        sign = signs.look(optimizer, loss, norm, history)
        if sign is not None:
            found.append((step, sign.code, sign.message))
    return found


def test_a_loss_that_jumps_tenfold_is_a_spike():
    ((step, code, message),) = signs_of([1.0] * 20 + [12.0] + [1.0] * 20)
    assert (step, code) == (21, "NS510")
    assert "the loss is 12: 12 times the median of the last 20 steps (1)" in message
    assert signs_of([1.0] * 20 + [9.0]) == []
    assert signs_of([1.0] * 20 + [12.0], checks=("dead",)) == []


def test_a_gradient_far_above_its_past_and_above_the_warning_norm_is_a_sign():
    ((step, code, message),) = signs_of([1.0] * 40, [2.0] * 30 + [150.0] + [2.0] * 9)
    assert (step, code) == (31, "NS507")
    assert "75 times the median" in message
    assert signs_of([1.0] * 40, [2.0] * 30 + [90.0] + [2.0] * 9) == [], "below warn_norm"
    assert signs_of([1.0] * 40, [5000.0] * 40) == [], "a loss that is a sum"


def test_gradients_that_are_all_zero():
    ((step, code, message),) = signs_of([1.0] * 15, [0.0] * 15)
    assert (step, code) == (NEVER_LEARNED, "NS511")
    assert "10 steps in a row" in message
    ((step, code, _),) = signs_of([1.0] * 60, [1.0] * 5 + [0.0] * 55)
    assert (step, code) == (35, "NS511"), "one that did learn has dead_steps"
    assert signs_of([1.0] * 60, [0.0, 1.0] * 30) == []


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_sign(seed):
    draw = random.Random(seed)
    steps = 2_000
    falling = [math.exp(-step / 100) * draw.lognormvariate(0.0, 0.4) for step in range(steps)]
    assert signs_of(falling) == []
    heavy = [draw.lognormvariate(0.0, 1.0) for _ in range(steps)]
    assert len(signs_of(heavy, [50 * x for x in heavy])) <= 8, "a heavy tail: one step in 250 at most"
    assert signs_of([draw.gauss(0.0, 1.0) for _ in range(steps)]) == [], "rewards of either sign"
    first = [1e6 / (1 + step) ** 3 for step in range(LEAST_PAST)]
    assert signs_of(first) == []


def test_not_a_number_leaves_the_level_as_it_was():
    assert [
        code for _, code, _ in signs_of([1.0] * 20 + [math.nan, math.inf] + [1.0] * 5 + [50.0], [1.0] * 20 + [math.nan, math.inf] + [1.0] * 6)
    ] == ["NS510"]


def test_in_a_run_a_sign_has_the_line_of_the_step_and_alters_nothing():
    def train(block):
        torch.manual_seed(0)
        p = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([p], lr=1e-4)
        with block as run:
            for step in range(40):
                loss = (p**2).sum() * (1000.0 if step == 30 else 1.0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return p.detach().clone(), run

    plain, _ = train(torch.enable_grad())
    guarded, run = train(instrument.stable(profile="guard"))
    assert torch.equal(plain, guarded)
    assert {(e.code, e.action, e.step) for e in run.events} == {("NS510", "warned", 31)}
    assert run.events[0].source == "optimizer.step()"
    assert run.interventions == 0
