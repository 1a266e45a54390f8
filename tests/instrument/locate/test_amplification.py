"""A clipped gradient far above the warning norm: the next step says which line of the forward pass is behind it."""

import torch
from torch import nn

import instrument


def quartic(steps, lr, scale, *, profile="train", **overrides):
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(6) * scale)
    optimizer = torch.optim.SGD([w], lr=lr)
    with instrument.stable(profile=profile, **overrides) as run:
        for _ in range(steps):
            small = (w * 1e-3).sum()
            loss = (w**4).mean() + small
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return w.detach(), run


def observed(run):
    return [e for e in run.events if (e.code, e.action) == ("NS507", "observed")]


def test_plain_it_overflows():
    w = torch.full((6,), 30.0, requires_grad=True)
    for _ in range(8):
        (gradient,) = torch.autograd.grad((w**4).sum(), w)
        w = (w - 0.05 * gradient).detach().requires_grad_()
    assert not torch.isfinite(w).all(), "negative control"


def test_the_line_with_the_largest_number_is_the_first_cause():
    w, run = quartic(6, 0.05, 30.0)
    (event,) = observed(run)
    assert event.op == "pow"
    assert event.source == "loss = (w**4).mean() + small"
    assert event.file == __file__
    assert event.maximum is not None
    assert event.maximum > 1e5
    assert run.first_cause == event
    assert torch.isfinite(w).all()


def test_a_survey_alters_nothing():
    surveyed, run = quartic(6, 0.05, 30.0)
    silent, other = quartic(6, 0.05, 30.0, gradient={"warn_norm": 1e30})
    assert observed(run)
    assert not observed(other)
    assert torch.equal(surveyed, silent)


def test_an_ordinary_clip_asks_nothing():
    _, run = quartic(6, 0.01, 1.0)
    assert [e.code for e in run.events] == ["NS507"]
    assert not observed(run)


def test_where_no_number_is_large_the_backward_that_enlarges_is_named():
    w = nn.Parameter(torch.tensor([1e-4, 2e-4]))
    optimizer = torch.optim.SGD([w], lr=1e-6)
    with instrument.stable(profile="train") as run:
        for _ in range(4):
            inner = w * 1.0
            loss = torch.log(inner).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    (event,) = observed(run)
    assert event.op == "log backward"
    assert event.source == "loss = torch.log(inner).sum()"


def test_the_mode_is_off_afterwards():
    before = torch._C._len_torch_function_stack()
    quartic(1, 0.05, 30.0)  # the block closes while a survey is asked for
    assert torch._C._len_torch_function_stack() == before
    quartic(5, 0.05, 30.0)
    assert torch._C._len_torch_function_stack() == before
