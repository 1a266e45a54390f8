"""A loss scale from which no update leads back is replaced; one that can be used is left alone."""

import math

import pytest
import torch
from torch import nn

import instrument


def train(scale=None, at=5, steps=30, profile="guard"):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    losses, scales = [], []
    with instrument.stable(profile=profile) as run:
        for index in range(steps):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
            if index == at and scale is not None:
                scaler.scale(loss)  # makes the tensor of the scale
                scaler._scale.fill_(scale)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            scales.append(scaler.get_scale())
    return losses, scales, run


@pytest.mark.parametrize("scale", [math.inf, math.nan, 0.0, 1e-42])
def test_training_goes_on_where_it_would_stand_still(scale):
    losses, scales, _ = train(scale, profile="observe")
    assert not any(1e-38 < s < math.inf for s in scales[5:]), "negative control"
    losses, scales, run = train(scale)
    assert scales[5] == 512.0
    assert losses[-1] < losses[6]
    assert [(e.code, e.action, e.count) for e in run.events if e.code == "NS513"] == [("NS513", "repaired", 1)]


def test_a_usable_scale_is_left_alone():
    _, scales, run = train()
    assert set(scales) == {512.0}
    assert run.events == ()
    assert train(1e30)[1][5] == pytest.approx(1e30), "large, and it works"
