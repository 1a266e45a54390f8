"""A gradient that is infinite for a moment and then selected away is no event: the script is healthy, to the bit. Where it arrives, it is one."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import instrument
from instrument.guards.dropped_gradient import is_dropped

X = torch.tensor([-1.0, -2.0, 3.0, 4.0])
NOTHING = torch.zeros(())

DROPPED = {
    "clamp": lambda x: x.clamp(min=0).sqrt(),
    "relu": lambda x: x.relu().sqrt(),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0).sqrt(),
    "where": lambda x: torch.where(x > 0, x, NOTHING).sqrt(),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0).sqrt(),
    "maximum": lambda x: torch.maximum(x, NOTHING).sqrt(),
    "power": lambda x: x.relu() ** 0.5,
    "something between": lambda x: (2.0 * x.clamp(min=0)).log1p().view(2, 2).t().sqrt(),
    "reciprocal of what is not used": lambda x: torch.where(x > 0, 1.0 / x.relu(), 0.0),
    "logarithm of what is not used": lambda x: torch.where(x > 0, x.relu().log(), 0.0),
    "edge of a range": lambda x: F.hardtanh(x).asin(),
    "two guarded ones": lambda x: x.relu().sqrt().sqrt(),
    "distances": lambda x: (x[:, None] ** 2 + x[None] ** 2 - 2.0 * x[:, None] * x[None] - 1e-3).clamp(min=0).sqrt(),
}

ARRIVES = {
    "at the edge of a clamp, which passes it on": lambda x: (x - 3.0).clamp(min=0).sqrt(),
    "through a product with 0": lambda x: (x * (x > 0)).sqrt(),
    "through relu, on the other side": lambda x: (x.relu() + x.detach().neg().relu() - x.detach().abs() + x - x.detach()).sqrt(),
}


def gradient(f, x=X):
    x = x.clone().requires_grad_()
    f(x).sum().backward()
    return x.grad


@pytest.mark.parametrize("profile", ["guard", "train", "observe"])
@pytest.mark.parametrize("name", DROPPED)
def test_what_is_dropped_is_no_event(name, profile):
    plain = gradient(DROPPED[name])
    assert plain.isfinite().all()
    with instrument.stable(profile=profile) as run:
        guarded = gradient(DROPPED[name])
    assert torch.equal(plain, guarded)
    assert [e for e in run.events if e.action != "clipped"] == []


@pytest.mark.parametrize("name", ARRIVES)
def test_what_arrives_is_one(name):
    plain = gradient(ARRIVES[name])
    assert not plain.isfinite().all()
    with instrument.stable(profile="guard") as run:
        guarded = gradient(ARRIVES[name])
    assert guarded.isfinite().all()
    assert torch.equal(guarded[plain.isfinite()], plain[plain.isfinite()])
    assert [(e.code, e.action) for e in run.events] == [("NS704", "neutralised")]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_is_not_made_to_compute_twice(reentrant):
    calls = []

    def block(x):
        calls.append(len(calls))
        return (x * 1.0).relu()

    def through(x):
        return checkpoint(block, x, use_reentrant=reentrant).sqrt()

    plain = gradient(through)
    asked = len(calls)
    with instrument.stable(profile="guard"):
        guarded = gradient(through)
    assert torch.equal(plain, guarded)
    assert len(calls) == 2 * asked


def test_nothing_is_touched_by_asking():
    x = X.clone().requires_grad_()
    met = []
    x.register_hook(met.append)
    y = (x * 2.0).relu()
    y.register_hook(met.append)
    assert is_dropped((y.grad_fn, 0), torch.tensor([math.inf, math.nan, 1.0, 1.0]))
    assert not is_dropped((y.grad_fn, 0), torch.tensor([1.0, 1.0, math.inf, 1.0]))
    assert met == []
    assert x.grad is None
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 2.0, 2.0]


def test_a_node_of_the_script_is_not_asked():
    asked = []

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, g):
            asked.append(g)
            return torch.where(X > 0, g, 0.0)

    with instrument.stable(profile="guard"):
        guarded = gradient(lambda x: Own.apply(x).sqrt())
    assert guarded.isfinite().all()
    assert len(asked) == 1


def test_a_dropped_gradient_is_not_taken_for_the_fault():
    """While operations are watched, the first bad gradient of the backward pass is one that harms nobody."""
    p = torch.nn.Parameter(X.clone())
    with instrument.stable(profile="guard") as run:
        optimizer = torch.optim.SGD([p], lr=0.01)
        for step in range(6):
            optimizer.zero_grad()
            harmless = torch.func.functional_call(torch.nn.ReLU(), {}, (p,))
            late = functools.partial(torch.pow, exponent=0.5)(harmless) * 1.0
            bad = p * math.nan if step in (2, 3) else p
            (late.sum() + bad.sum()).backward()
            optimizer.step()
    assert p.isfinite().all()
    assert run.first_cause.op == "mul"


def test_inside_a_transform_nothing_is_taken_for_dropped():
    def distance(p, x):
        d = p - x
        return torch.sqrt(d[0] * d[0] + d[1] * d[1])  # at 0 for the first

    p, x = torch.ones(2), torch.stack([torch.ones(2), torch.zeros(2)])
    with instrument.stable() as run:
        per_sample = torch.func.vmap(torch.func.grad(distance), in_dims=(None, 0))
        for _ in range(4):
            p = p - 0.0 * per_sample(p, x).sum(0)
    assert run.first_cause.op == "sqrt backward"
