"""What a checkpoint does again inside backward is what its forward pass did, whatever was learnt of the step in between: it compares the two.

Also what stays the script's own: its data, although it asks for a gradient, and a leaf that an operation hands back as it is.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import instrument

FAULTS = {
    "product": lambda h, bad: h * (1e30 if bad else 1.0) * (1e30 if bad else 1.0),
    "matmul": lambda h, bad: (h @ h.t() * (1e38 if bad else 1.0)) @ h,
    "log": lambda h, bad: torch.log(h.abs() * (0.0 if bad else 1.0)),
    "exp": lambda h, bad: torch.exp(h * (300.0 if bad else 1.0)),
    "division": lambda h, bad: h / (h * 0.0 if bad else h.detach().abs() + 1.0),
    "norm": lambda h, bad: h / (h - h.detach() if bad else h.detach() + 2.0).norm(dim=-1, keepdim=True),
    "NaN data": lambda h, bad: h / (h.detach() * math.nan if bad else 2.0),
}


class Block(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.linear, self.norm, self.fault = nn.Linear(4, 4), nn.LayerNorm(4), fault

    def forward(self, x, bad):
        return x + self.fault(self.norm(self.linear(x)), bad)


def _train(fault, *, reentrant, optimizer=torch.optim.AdamW):
    torch.manual_seed(0)
    blocks = nn.ModuleList([Block(FAULTS[fault]) for _ in range(3)])
    stepper = optimizer(blocks.parameters(), 1e-2)
    for step in range(12):
        data = torch.randn(8, 4, requires_grad=reentrant)

        def closure(data=data, step=step):
            stepper.zero_grad()
            h = data
            for index, block in enumerate(blocks):
                h = checkpoint(block, h, step in (3, 4, 7, 10) and index == 1, use_reentrant=reentrant)
            loss = h.pow(2).mean()
            loss.backward()
            return loss

        if optimizer is torch.optim.LBFGS:
            stepper.step(closure)
        else:
            closure()
            stepper.step()
    return blocks


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_comes_back_in_a_checkpoint_is_survived(fault, reentrant):
    with instrument.stable() as run:
        blocks = _train(fault, reentrant=reentrant)
    assert all(torch.isfinite(p).all() for p in blocks.parameters())
    assert run.events


@pytest.mark.parametrize("fault", ["product", "division", "NaN data"])
def test_the_same_inside_a_closure(fault):
    with instrument.stable():
        blocks = _train(fault, reentrant=False, optimizer=torch.optim.LBFGS)
    assert all(torch.isfinite(p).all() for p in blocks.parameters())


@pytest.mark.parametrize("fault", ["product", "division", "log"])
def test_two_passes_of_one_step_of_which_the_first_taught_something(fault):
    torch.manual_seed(0)
    block = Block(FAULTS[fault])
    optimizer = torch.optim.SGD(block.parameters(), 1e-2)
    with instrument.stable():
        for step in range(12):
            bad = step in (2, 6, 7)
            first = checkpoint(block, torch.randn(8, 4), bad, use_reentrant=False)
            loss = nn.functional.binary_cross_entropy_with_logits(first, torch.ones(8, 4))  # this guard blames what went in at once
            second = checkpoint(block, torch.randn(8, 4), bad, use_reentrant=False).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            second.backward()
            optimizer.step()
    assert all(torch.isfinite(p).all() for p in block.parameters())


def _saved_by(function, x):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function(x)
    return len(saved)


@pytest.mark.parametrize("function", [lambda x: x / (x * 0.0), lambda x: x.sqrt(), lambda x: 1.0 / x, lambda x: x**0.5, lambda x: (x * 0.0).norm()])
def test_an_operation_is_judged_once_under_a_mode(function):
    """Under a mode torch calls the stand-in once more from inside of the handler."""
    x = torch.zeros(4, requires_grad=True)
    with instrument.stable(profile="guard"):
        without = _saved_by(function, x)
        with torch.device("cpu"):  # a TorchFunctionMode of torch's own
            assert _saved_by(function, x) == without


def test_data_that_asks_for_a_gradient_is_not_written_into():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with instrument.stable() as run:
        for step in range(6):
            points = torch.ones(4, 3, requires_grad=True)
            if step == 3:
                points.data[1, 2] = math.nan
            before = points.detach().clone()
            optimizer.zero_grad()
            model(points).pow(2).mean().backward()
            optimizer.step()
            assert torch.equal(points.detach().nan_to_num(7.0), before.nan_to_num(7.0))
    assert run.tally.steps == 6, "a pass that reaches data is no step of its own"


def test_a_tensor_that_is_updated_by_hand_beside_an_optimizer_is_kept_finite():
    model, scale = nn.Linear(3, 1), torch.ones((), requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with instrument.stable():
        for step in range(8):
            optimizer.zero_grad()
            (model(torch.ones(4, 3)) * scale).pow(2).mean().backward()
            optimizer.step()
            with torch.no_grad():
                scale -= 0.01 * scale.grad if step != 5 else math.inf
            scale.grad = None
    assert torch.isfinite(scale)


def test_a_leaf_that_an_operation_hands_back_is_not_written_into():
    """`flatten` of a matrix is the matrix; at a line that is mended, that of a parameter with a NaN must not be filled in place."""
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with instrument.stable():
        for step in range(10):
            optimizer.zero_grad()
            bad = step in (2, 3, 5, 7)
            if bad:
                weight.data[0, 0] = math.inf
            (weight.flatten(1) * (1e30 if bad else 1.0) * (1e30 if bad else 1.0)).sum().backward()
            optimizer.step()
    assert torch.isfinite(weight).all()
