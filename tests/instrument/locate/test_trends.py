"""Growth in the history is told from noise, and a failure says what grew before it."""

import itertools
import math

import pytest
import torch
from torch import nn

import instrument
from instrument.history import StepRecord
from instrument.locate.trends import growth, trend_of


def records(losses, norms=None, rates=None):
    norms = norms or [1.0] * len(losses)
    rates = rates or [0.1] * len(losses)
    rows = enumerate(zip(losses, norms, rates, strict=True), start=1)
    return [StepRecord(step, loss, norm, rate, "stepped", float(step)) for step, (loss, norm, rate) in rows]


def test_geometric_growth_is_measured_per_step():
    found = growth([0.5, 0.4, *(3.0**k for k in range(8))])
    assert (found.first, found.last) == (0.4, 3.0**7)
    assert found.factor == pytest.approx((3.0**7 / 0.4) ** (1 / found.steps))


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 20,
        [1.0 + 0.5 * (-1) ** k for k in range(20)],
        [2.0 ** (-k) for k in range(20)],
        [1.0, 1.0, 1.0, 1.0, 1.0, 100.0],
        [1.0, 50.0, 1.0, 60.0, 1.0, 70.0, 1.0, 80.0],
        [1.0, 2.0, 4.0],
        [math.nan] * 10,
        [],
    ],
)
def test_noise_decay_one_spike_and_short_histories_are_no_growth(values):
    assert growth(values) is None


def test_the_growth_that_ended_in_a_non_finite_loss_is_seen():
    trend = trend_of(records([*(4.0**k for k in range(10)), math.inf, math.nan]))
    assert "the loss grew 4 x a step over the last 9 steps" in trend.text
    assert "the learning rate is 0.1" in trend.text
    assert not trend.is_runaway


def test_warm_up_is_a_trend_at_most_and_never_a_runaway():
    trend = trend_of(records([1.0] * 20, rates=[1e-6 * 2**k for k in range(20)]))
    assert trend is not None
    assert not trend.is_runaway
    assert trend_of(records([1.0] * 20, rates=[1e-3 * 10**k for k in range(20)])).is_runaway


def train(lr, profile, steps=200, gamma=None):
    torch.manual_seed(0)
    net = nn.Linear(10, 1)
    x = torch.randn(64, 10)
    y = x.sum(1, keepdim=True)
    with instrument.stable(profile=profile) as run:
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma) if gamma else None
        for _ in range(steps):
            loss = ((net(x) - y) ** 2).mean()  # forward
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # step
            if schedule:
                schedule.step()
    return run


def line_of(text):
    with open(__file__, encoding="utf-8") as source:
        return next(i for i, line in enumerate(source, start=1) if line.rstrip().endswith(f"# {text}"))


def test_an_over_large_learning_rate_is_said_from_the_history():
    run = train(5.0, "guard")
    (told,) = [e for e in run.events if e.code == "NS512"]
    assert (told.action, told.line) == ("warned", line_of("step"))
    assert "the loss grew" in told.message
    assert "the gradient norm grew" in told.message
    assert "the learning rate is 5" in told.message
    assert run.first_cause.line == line_of("forward")


def test_a_schedule_that_grows_without_bound_is_the_first_cause():
    run = train(1e-3, "train", gamma=10.0)
    cause = run.first_cause
    assert (cause.code, cause.line) == ("NS512", line_of("step")), run.summary()
    assert "the learning rate grew 10 x a step" in cause.message


def test_a_healthy_run_tells_no_trend():
    run = train(0.01, "guard")
    assert run.events == ()
    losses = [record.loss for record in run.history]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))


# Where clipping keeps the numbers finite nothing is born: what made the gradients large is still said ----------------------


def clipped(lr, gamma=1.0, steps=60):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 1))
    x = torch.randn(100, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=gamma)
    with instrument.stable(profile="train") as run:
        for _ in range(steps):
            loss = (net(x) * 20).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return run


def test_a_rate_that_grew_without_bound_is_the_first_cause_although_clipping_kept_everything_finite():
    cause = clipped(1e-3, gamma=1.6).first_cause
    assert (cause.code, cause.source) == ("NS512", "optimizer.step()")
    assert "the learning rate grew 1.6 x a step over the last 59 steps" in cause.trend


def test_a_constant_rate_that_is_too_large_is_named_at_the_operation_with_the_length_of_its_step():
    cause = clipped(0.5).first_cause
    assert (cause.code, cause.source) == ("NS507", "loss = (net(x) * 20).pow(2).mean()")
    assert "unclipped, a step of the learning rate 0.5 would have been" in cause.message
    assert "times the parameters' own norm" in cause.message


def test_of_a_moderate_rate_no_length_is_said():
    events = [e for e in clipped(1e-5).events if e.action == "observed"]
    assert len(events) == 1
    assert "unclipped" not in events[0].message


def test_a_weight_that_grows_is_named_and_not_the_product_that_it_enters():
    log_weight = nn.Parameter(torch.zeros(2))
    w = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([log_weight, w], lr=0.5)
    with instrument.stable(profile="train") as run:
        for _ in range(60):
            weight = torch.exp(-log_weight)
            value = (w * 0.0 - 0.7).sum()
            loss = weight[0] * value + log_weight[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    cause = run.first_cause
    assert (cause.op, cause.source) == ("exp", "weight = torch.exp(-log_weight)")
    assert "the largest argument of exp here rose by" in cause.message
