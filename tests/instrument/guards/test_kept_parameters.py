"""Updates that no optimizer's step makes: a parameter that they spoil is put back, and the line that made the bad number is named."""

from pathlib import Path

import pytest
import torch
from torch import nn

import instrument

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()
BIRTH = next(i for i, line in enumerate(LINES, start=1) if line.endswith("# birth"))


def normalised_update(p):
    p.data -= 0.1 * p.grad / p.grad.norm()  # birth


def train(zero_at, steps=6, profile="train"):
    p = nn.Parameter(torch.ones(3))
    losses = []
    with instrument.stable(profile=profile) as run:
        for index in range(steps):
            p.grad = None
            loss = (p * (0.0 if index == zero_at else 1.0)).pow(2).sum()
            loss.backward()
            losses.append(loss.item())
            normalised_update(p)
    return p, losses, run


@pytest.mark.parametrize("zero_at", [0, 2, 5])  # the first update, one in the middle, the last
def test_a_spoilt_parameter_is_put_back_and_the_line_is_named(zero_at):
    p, _, run = train(zero_at)
    assert torch.isfinite(p).all()
    assert (run.first_cause.file, run.first_cause.line) == (__file__, BIRTH), run.summary()
    assert any(e.action == "rolled-back" for e in run.events)


def test_observing_alters_nothing():
    p, _, run = train(2, profile="observe")
    assert torch.isnan(p).all(), "negative control"
    assert not any(e.repaired for e in run.events)


def test_what_is_put_back_is_what_was_before_the_update():
    good, _, healthy = train(None, steps=5)
    p, _, _ = train(5)
    assert torch.equal(p, good)
    assert healthy.events == ()


def test_infinities_of_healthy_steps_put_nothing_back():
    p = nn.Parameter(torch.ones(3))
    with instrument.stable(profile="guard") as run:
        for _ in range(4):
            p.grad = None
            mask = torch.log(torch.tensor([0.0, 1.0, 1.0]))
            ((p + mask).softmax(0) * p).sum().backward()
            p.data -= 0.1 * p.grad
    assert run.events == ()


def test_functional_training_by_autograd_grad():
    p = torch.ones(3, requires_grad=True)
    with instrument.stable(profile="train") as run:
        for index in range(5):
            (g,) = torch.autograd.grad((p * (index != 1)).pow(2).sum(), p)
            with torch.no_grad():
                p.copy_(p - 0.1 * g / g.norm())
    assert torch.isfinite(p).all()
    assert run.tally.steps == 5
