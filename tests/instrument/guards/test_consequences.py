"""A number that came in as NaN: what guards do to gradients behind it is a consequence, not a finding of the lines that it passes through."""

import math

import pytest
import torch
from torch import nn

import instrument
from instrument.events import CONSEQUENCES

LOSSES = {
    "pow": lambda a, b: ((a - b) ** 2).mean(),
    "square": lambda a, b: (a - b).square().mean(),
    "log": lambda a, b: (a - b).abs().add(1).log().mean(),
    "norm": lambda a, b: (a - b).norm(),
    "div": lambda a, b: (a / (b.abs() + 1)).mean(),
}


def trained(loss, spoil):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with instrument.stable(profile="guard") as run:
        for step in range(4):
            inputs, targets = torch.randn(8, 4), torch.randn(8, 1)
            if step == 2:
                spoil(inputs, targets)
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return run


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_bad_data_behind_a_guarded_operation_is_one_cascade(name, where):
    def spoil(inputs, targets):
        (inputs if where == "inputs" else targets)[3, 0] = math.nan

    assert trained(LOSSES[name], lambda inputs, targets: None).events == ()
    run = trained(LOSSES[name], spoil)
    assert {event.code for event in run.events} - CONSEQUENCES == {"NS803"}
    assert run.first_cause is not None
    assert run.first_cause.code == "NS803"


def test_an_operation_that_is_at_fault_beside_bad_data_is_still_named():
    # Element 0 is NaN, element 1 is 0: the logarithm's derivative is infinite there whatever came in elsewhere.
    def rooted(*data):
        w = torch.ones(len(data), requires_grad=True)
        with instrument.stable(profile="guard") as run:
            behind = w * torch.tensor(data)
            behind.retain_grad()
            behind.log().sum().backward()
        assert behind.grad is not None
        return behind.grad.tolist(), {event.code for event in run.events}

    gradient, codes = rooted(math.nan, 0.0, 4.0)
    assert gradient == [0.0, 0.0, 0.25]
    assert "NS205" in codes
    gradient, codes = rooted(math.nan, 4.0)
    assert gradient == [0.0, 0.25]
    assert "NS205" not in codes
