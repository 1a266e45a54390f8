"""Overflow of the exponentials, forward and backward, four dtypes, every spelling."""

import math

import pytest
import torch

import instrument
from instrument.guards.exp import ExpGuard
from latent_drift.numerics import limits

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LIMIT = {
    "exp": limits.largest_exp_argument,
    "expm1": limits.largest_exp_argument,
    "exp2": limits.largest_exp2_argument,
    "sinh": limits.largest_sinh_argument,
    "cosh": limits.largest_sinh_argument,
}
SPELLINGS = ExpGuard().spellings()


def call(spelling, x):
    function = getattr(spelling.owner, spelling.name)
    return function(x.clone()) if spelling.inplace else function(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.path)
def test_inside_the_bound_nothing_changes_and_beyond_it_the_result_is_that_at_the_bound(spelling, dtype):
    limit = LIMIT[spelling.op](dtype)
    x = torch.tensor([0.5, limit, 2.0 * limit + 1.0], dtype=dtype)
    plain = call(spelling, x)
    assert torch.isinf(plain[2]), "negative control"
    with instrument.stable(profile="guard") as run:
        guarded = call(spelling, x)
    assert torch.equal(guarded[:2], plain[:2])
    assert torch.equal(guarded[2], plain[1])
    (event,) = run.events
    assert (event.code, event.action, event.count) == ("NS201", "bounded", 1)
    assert event.dtype == str(dtype).removeprefix("torch.")
    assert event.file == __file__
    assert "function(x" in event.source


@pytest.mark.parametrize("op", ["sinh", "cosh"])
def test_both_ends_of_the_even_and_odd_functions(op):
    x = torch.tensor([-200.0, 200.0])
    with instrument.stable(profile="guard"):
        assert torch.isfinite(getattr(torch, op)(x)).all()
        assert torch.isfinite(getattr(x.clone(), op + "_")()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_inside_is_bitwise_torchs_and_outside_it_is_finite_and_returns(dtype):
    limit = limits.largest_exp_argument(dtype)
    values = torch.tensor([0.5, 3.0, limit + 30.0], dtype=dtype)
    weight = torch.tensor([0.3, 0.7, 1e-3], dtype=dtype)
    plain = values.clone().requires_grad_()
    (torch.exp(plain) * weight).sum().backward()
    assert not torch.isfinite(plain.grad[2]), "negative control"
    guarded = values.clone().requires_grad_()
    with instrument.stable(profile="train"):
        (torch.exp(guarded) * weight).sum().backward()
    assert torch.equal(guarded.grad[:2], plain.grad[:2])
    assert torch.isfinite(guarded.grad[2])
    assert guarded.grad[2] > 0


def test_gradient_outside_is_zero_where_the_config_says_so():
    x = torch.tensor([200.0], requires_grad=True)
    with instrument.stable(profile="guard", exp={"gradient_outside": "zero"}):
        x.exp().sum().backward()
    assert x.grad.item() == 0.0


def test_a_tighter_bound_from_the_config_holds_for_finite_results():
    with instrument.stable(exp={"bound": 20.0}) as run:
        result = torch.exp(torch.tensor([19.0, 20.0, 30.0]))
    assert result.tolist() == torch.exp(torch.tensor([19.0, 20.0, 20.0])).tolist()
    assert run.events[0].count == 1


def test_nan_that_came_in_is_passed_on_without_an_alarm():
    with instrument.stable() as run:
        result = torch.exp(torch.tensor([math.nan, 1.0]))
    assert torch.isnan(result[0])
    assert run.events == ()


def test_autocast_decides_by_the_dtype_of_the_result():
    x = torch.tensor([12.0], dtype=torch.float32)
    with instrument.stable() as run, torch.autocast("cpu", dtype=torch.float16):
        plain = torch.exp(x)
    assert torch.isfinite(plain).all()
    assert run.events == ()


def test_a_line_that_spoils_a_step_is_bounded_with_room_for_what_follows():
    parameter = torch.nn.Parameter(torch.tensor([200.0, 200.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    losses = []
    with instrument.stable() as run:
        for _ in range(3):
            optimizer.zero_grad()
            loss = parameter.exp().sum()  # two results at the bound: the sum overflows
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert math.isinf(losses[0])
    assert math.isfinite(losses[1])
    assert parameter.max().item() < 200.0, "the argument comes back"
    assert "NS509" in [e.code for e in run.events]


@pytest.mark.parametrize("profile", ["guard", "train"])
def test_on_a_device_the_bound_is_applied_without_a_read(monkeypatch, profile):
    """The accelerator's path, forced onto tensors of the CPU by denying that they are there."""
    import instrument.guards.exp as module

    x = torch.tensor([1.0, 200.0], requires_grad=True)
    with instrument.stable(profile=profile) as run:
        out = module._on_device(run_original := torch.exp.__wrapped__, "exp", x, (x,), {})
        assert torch.equal(
            out.detach(), torch.stack([run_original(torch.tensor(1.0)), run_original(torch.tensor(limits.largest_exp_argument(torch.float32)))])
        )
        assert run.log.__len__() == 0, "nothing is read until the step"
        run.read_deferred()
    assert [e.code for e in run.events] == ["NS201"]


def test_integer_complex_empty_and_zero_dim_inputs():
    with instrument.stable() as run:
        assert torch.exp(torch.tensor([1, 2])).dtype is torch.float32
        assert torch.exp(torch.tensor([1j])).dtype is torch.complex64
        assert torch.exp(torch.empty(0)).shape == (0,)
        assert torch.exp(torch.tensor(1.0)).shape == ()
        with pytest.raises(TypeError):
            torch.exp("x")
    assert run.events == ()


def test_double_backward_through_the_bound():
    x = torch.tensor([1.0, 200.0], requires_grad=True, dtype=torch.float64)
    with instrument.stable():
        (first,) = torch.autograd.grad((x.exp() * torch.tensor([1.0, 0.0], dtype=torch.float64)).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second[0], torch.tensor(1.0, dtype=torch.float64).exp())
    assert torch.isfinite(second).all()
