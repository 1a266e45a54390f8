"""A NaN gradient that a ReLU leaves out: the script is fine. Nothing is said, and whoever looks at the gradient in between sees torch's own."""

import torch
from torch import nn

import instrument


def train(hidden):
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    x = torch.tensor([0.0, 0.0, 1.0, 2.0])
    for _ in range(3):
        kept = torch.relu(weight * x - 0.5 * (x == 0))
        kept.register_hook(lambda gradient: hidden.append(int((~torch.isfinite(gradient)).sum())))
        root = torch.sqrt(kept)
        optimizer.zero_grad()
        (root * root).sum().backward()
        optimizer.step()
    return weight.detach()


def test_nothing_is_said_and_nothing_changes():
    plain_hidden, hidden = [], []
    plain = train(plain_hidden)
    with instrument.stable(profile="guard") as run:
        guarded = train(hidden)
    assert plain_hidden == hidden == [2, 2, 2]  # NaN did arrive at the ReLU, in every step
    assert torch.equal(plain, guarded)
    assert not run.events
    assert run.tally.skipped == 0
