"""A softmax by hand over a row that is wholly masked: the NaN is a difference of two infinities, one bad batch in many."""

import torch
from torch import nn

import instrument


def attention(scores, keep):
    scores = scores / 2.0
    scores = scores.masked_fill(~keep, float("-inf"))
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return weights / weights.sum(-1, keepdim=True)


def train(steps, bad):
    torch.manual_seed(0)
    net, out = nn.Linear(5, 5), nn.Linear(5, 5)
    optimizer = torch.optim.Adam([*net.parameters(), *out.parameters()], lr=1e-2)
    for step in range(steps):
        x = torch.randn(4, 5)
        keep = torch.rand(4, 5) > 0.2
        keep[:, 0] = True
        if step == bad:
            keep[2] = False
        loss = (out(attention(net(x), keep)) - x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return out.weight.detach()


def test_the_difference_is_named_not_what_came_before_the_mask():
    assert train(30, 8).isnan().any(), "negative control"
    with instrument.stable(profile="guard") as run:
        weight = train(30, 8)
    assert torch.isfinite(weight).all()
    assert run.first_cause.source == "weights = torch.exp(scores - scores.max(-1, keepdim=True).values)"
