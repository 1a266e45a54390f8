"""A state that grows from call to call of one line until it overflows is named as an exploding recurrence; an overflow without such growth is not."""

import re

import pytest
import torch
from torch import nn

import instrument
from instrument.locate.trends import recurrence


def train(loss_of, parameters, steps=4):
    optimizer = torch.optim.SGD(parameters, lr=1e-6)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()


def cause_of(loss_of, parameters):
    torch.manual_seed(0)
    with instrument.stable() as run:
        train(loss_of, parameters)
    assert run.first_cause is not None
    return run.first_cause


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_an_exploding_state_is_named_with_its_factor(factor):
    weight = nn.Parameter(torch.eye(4) * factor)

    def loss():
        h = torch.ones(2, 4)
        for _ in range(200):
            h = h @ weight
        return h.mean()

    cause = cause_of(loss, [weight])
    assert (cause.code, cause.source) == ("NS806", "h = h @ weight")
    # The state is the factor to the power of the calls, exactly: the last finite one is the largest power below float32's maximum.
    found = re.search(r"grew (\S+) x a call over the last (\d+) calls", cause.trend)
    assert float(found[1]) == pytest.approx(factor, rel=1e-2)
    assert int(found[2]) == {2.0: 127, 8.0: 42}[factor] - 1
    assert cause.message.endswith(cause.trend.split("; ")[0])


def test_an_overflow_of_one_call_is_none():
    weight = nn.Parameter(torch.full((4, 4), 1e30))
    cause = cause_of(lambda: (torch.full((2, 4), 1e30) @ weight).mean(), [weight])
    assert cause.code == "NS805"
    assert cause.trend is None


def test_a_stable_recurrence_whose_last_input_overflows_is_none():
    weight = nn.Parameter(torch.eye(4) * 0.5)

    def loss():
        h = torch.ones(2, 4)
        for t in range(40):
            h = h @ weight + (0.0 if t < 39 else 3e38 * weight.sum())
        return h.mean()

    cause = cause_of(loss, [weight])
    assert cause.trend is None
    assert cause.code == "NS805"


@pytest.mark.parametrize("sizes", [[1.0] * 50, [2.0**-k for k in range(50)], [1.0, 1e5], [3.0**k for k in range(4)], [1.5**k for k in range(10)], []])
def test_what_does_not_explode_is_no_recurrence(sizes):
    assert recurrence(sizes) is None
