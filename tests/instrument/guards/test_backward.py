"""Scripts that update by hand, autograd.grad, and loss scaling."""

import math

import pytest
import torch
from torch import nn

import instrument


def by_hand(update, steps=4, spoil=2):
    torch.manual_seed(0)
    w = torch.randn(3, 1, requires_grad=True)
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    losses = []
    for index in range(steps):
        loss = ((x @ w - y) ** 2).mean()
        if index == spoil:
            loss = loss + (w[0] * 0 * math.inf).sum()
        if w.grad is not None:
            w.grad.zero_()
        loss.backward()
        update(w)
        losses.append(loss.item())
    return w.detach().clone(), losses


def data_add(w):
    w.data.add_(w.grad, alpha=-0.1)


def no_grad_minus(w):
    with torch.no_grad():
        w -= 0.1 * w.grad


def data_assign(w):
    w.data = w.data - 0.1 * w.grad


@pytest.mark.parametrize("update", [data_add, no_grad_minus, data_assign])
@pytest.mark.parametrize("profile", ["guard", "train"])
def test_hand_made_updates_stay_finite(update, profile):
    assert not torch.isfinite(by_hand(update)[0]).all(), "negative control"
    with instrument.stable(profile=profile) as run:
        w, losses = by_hand(update)
    assert torch.isfinite(w).all()
    assert math.isfinite(losses[-1])
    assert ("NS506", "zeroed") in [(e.code, e.action) for e in run.events]
    healthy = by_hand(update, spoil=-1)
    with instrument.stable(profile=profile) as run:
        guarded = by_hand(update, spoil=-1)
    assert torch.equal(healthy[0], guarded[0])
    assert run.events == ()


def test_an_optimizer_of_the_script_is_left_to_judge_at_its_step():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    with instrument.stable() as run:
        (parameter.sum() * math.nan).backward()
        assert torch.isnan(parameter.grad).all(), "backward leaves it to the step"
        optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(2))
    assert not optimizer.state
    assert run.tally.skipped == 1


def test_a_script_with_an_optimizer_and_a_hand_made_update():
    parameter, extra = nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)
    with instrument.stable(profile="guard"):
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        (parameter.sum() + (extra * math.inf * 0).sum()).backward()
        assert torch.equal(extra.grad, torch.zeros(2))
        optimizer.step()
    assert parameter[0].item() == pytest.approx(0.9)


@pytest.mark.parametrize("create_graph", [False, True])
def test_autograd_grad_gives_finite_numbers(create_graph):
    x = torch.tensor([0.0, 4.0], requires_grad=True)

    def gradient():
        (g,) = torch.autograd.grad(torch.stack([x[0] * math.inf, x[1] ** 2]).sum(), x, create_graph=create_graph)
        return g

    assert torch.isinf(gradient()[0]), "negative control"
    with instrument.stable(profile="guard") as run:
        g = gradient()
    assert g.tolist() == [0.0, 8.0]
    assert g.requires_grad == create_graph
    assert [e.action for e in run.events if e.repaired] == ["zeroed"]


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scalers_search_is_no_anomaly(fused):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    with instrument.stable(profile="guard") as run:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        for _ in range(6):
            optimizer.zero_grad()
            loss = (model(torch.randn(8, 4)) * 50).pow(2).mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() < 2.0**127, "the scaler did have to search"
    assert run.events == ()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_clipping_judges_unscaled_gradients(fused, unscale):
    def train(guarded):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=guarded)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((8, 4), 20.0)).pow(2).mean()).backward()
            if unscale and guarded:
                scaler.unscale_(optimizer)
            if not guarded:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        return [p.detach().clone() for p in model.parameters()]

    expected = train(guarded=False)
    with instrument.stable(profile="train") as run:
        result = train(guarded=True)
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert {e.code for e in run.events} == {"NS507"}


def test_a_nan_loss_under_a_scaler_is_reported_although_the_scaler_skips():
    model = nn.Linear(2, 1)
    with instrument.stable(profile="guard") as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        loss = model(torch.tensor([[math.nan, 1.0]])).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [e.code for e in run.events] == ["NS509", "NS803"], "the loss, and the data that made it so"
    assert run.events[0].file == __file__
