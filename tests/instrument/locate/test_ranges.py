"""A log-variance, or whatever else an exponential or a power is taken of, that grew until it overflowed is named as the trend that it was."""

import math

import pytest
import torch
from torch import nn

import instrument
from instrument.locate.ranges import MOST_CALLS, Ranges
from instrument.locate.trends import rise


def in_steps(values):
    return list(enumerate(values, start=1))


def test_a_steady_rise_is_measured_per_step():
    found = rise(in_steps([3.0, 1.0, *(1.0 + 2.0 * k for k in range(1, 21))]))
    assert (found.first, found.last, found.steps) == (1.0, 41.0, 20)
    assert "rose by 2 a step over the last 20 steps, from 1 to 41" in str(found)


def test_a_rise_below_the_noise_of_batches_is_seen():
    noise = torch.randn(120, generator=torch.Generator().manual_seed(0)).tolist()
    assert rise(in_steps([0.5 * k + 5.0 * e for k, e in enumerate(noise)])) is not None


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 20,
        [1.0] * 20 + [90.0],
        [1.0 + (-1) ** k for k in range(30)],
        [50.0 - k for k in range(30)],
        [*torch.randn(100, generator=torch.Generator().manual_seed(1)).tolist(), 90.0],
        [1.0, 2.0],
        [],
    ],
    ids=["level", "leap", "noise", "fall", "noise-and-leap", "short", "none"],
)
def test_what_did_not_rise_is_no_rise(values):
    assert rise(in_steps(values)) is None


def test_calls_are_told_apart_by_their_order_and_the_store_is_bounded():
    ranges = Ranges(8)
    for step in range(1000):
        ranges.see("exp", math.exp(0.05 * step))
        ranges.see("exp", 1.0)
        for _ in range(3 * MOST_CALLS):
            ranges.see("exp2", 2.0)
        assert len(ranges.now["exp2"]) == MOST_CALLS
        ranges.step_finished(healthy=True)
    assert len(ranges._whole) < 16
    ranges.see("exp", math.exp(50.0))
    assert "the largest argument of exp here rose by 0.05 a step" in ranges.argument_trend("exp", 50.0)
    ranges.see("exp", math.inf)
    assert ranges.argument_trend("exp", 90.0) is None
    assert ranges.argument_trend("cosh", 90.0) is None


def test_steps_that_failed_are_no_part_of_the_history():
    ranges = Ranges(8)
    for step in range(20):
        ranges.see("exp", math.exp(4.0 * step))
        ranges.step_finished(healthy=False)
    ranges.see("exp", math.inf)
    assert ranges.argument_trend("exp", 90.0) is None


def train(speed, scale=1e-30):
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    log_var = nn.Parameter(torch.zeros(1))
    with instrument.stable() as run:
        optimizer = torch.optim.SGD([*net.parameters(), log_var], lr=0.05)
        for step in range(60):
            out = net(torch.randn(16, 4))
            shifted = log_var + speed(step)
            loss = (out - 1).tanh().mean() * scale * torch.exp(shifted).sum()  # birth
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return run


def line_of(text):
    with open(__file__, encoding="utf-8") as source:
        return next(i for i, line in enumerate(source, start=1) if line.rstrip().endswith(f"# {text}"))


def test_a_growing_log_variance_is_named_as_that():
    run = train(lambda step: 2.0 * step)
    cause = run.first_cause
    assert (cause.code, cause.line) == ("NS201", line_of("birth"))
    assert "the largest argument of exp here rose by 2" in cause.trend
    assert cause.trend in cause.message
    assert cause.trend in run.summary()


def test_a_product_that_overflows_because_of_it_says_so():
    cause = train(lambda step: 2.0 * step, scale=1e8).first_cause
    assert (cause.code, cause.line) == ("NS805", line_of("birth"))
    assert "the largest argument of exp here rose by 2" in cause.trend


def test_a_leap_has_no_trend():
    run = train(lambda step: 100.0 if step == 40 else 0.0)
    assert run.first_cause.line == line_of("birth")
    assert run.first_cause.trend is None
