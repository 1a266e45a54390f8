"""A NaN gradient that a ReLU leaves out: the script is fine, the number was there. The event says how many there were, and nothing else changes."""

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


def test_the_event_counts_what_was_not_finite_there_and_the_training_is_the_same():
    plain_hidden, hidden = [], []
    plain = train(plain_hidden)
    with instrument.stable(profile="guard") as run:
        guarded = train(hidden)
    assert plain_hidden == [2, 2, 2]  # NaN did arrive at the ReLU, in every step
    assert hidden == [0, 0, 0]
    assert torch.equal(plain, guarded)
    (event,) = run.events
    assert (event.code, event.action, event.count, event.source) == ("NS704", "neutralised", 3, "root = torch.sqrt(kept)")
    assert "2 elements of its gradient would be NaN or Inf" in event.message
    assert run.tally.skipped == 0
