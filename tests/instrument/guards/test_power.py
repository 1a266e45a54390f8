"""Powers that overflow: bounded just below the dtype's largest number, with a gradient that returns."""

import math

import pytest
import torch

import instrument

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FORMS = {
    "x ** 2": lambda x: x**2,
    "x.pow(2)": lambda x: x.pow(2),
    "torch.pow(x, 2.0)": lambda x: torch.pow(x, 2.0),
    "x.square()": lambda x: x.square(),
    "torch.square(x)": torch.square,
    "x.pow_(2)": lambda x: (x * 1.0).pow_(2),
    "x **= 2": lambda x: (x * 1.0).__ipow__(2),
    "x.square_()": lambda x: (x * 1.0).square_(),
    "x ** 3": lambda x: x**3,
    "2.0 ** x": lambda x: 2.0**x,
    "x ** y": lambda x: x ** torch.full_like(x, 2.5),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_overflow_is_bounded_and_its_gradient_is_finite_and_returns(form, dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor([3.0, 0.5 * largest], dtype=dtype)
    x = values.clone().requires_grad_()
    plain = FORMS[form](x)
    assert plain[1].isinf(), "negative control"
    (plain_gradient,) = torch.autograd.grad(plain[0], x)
    with instrument.stable(profile="guard") as run:
        y = FORMS[form](x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y[0] == plain[0]
    assert 0.25 * largest <= y[1].item() <= largest
    assert gradient[0] == plain_gradient[0]
    assert 0.0 < gradient[1].item() < math.inf
    assert [(e.code, e.action) for e in run.events] == [("NS206", "bounded")]
    assert run.events[0].file == __file__


def test_a_large_exponent_leaves_room_for_its_derivative():
    base, exponent = torch.tensor([50.0, 2.0], requires_grad=True), torch.tensor([60.0, 3.0], requires_grad=True)
    with instrument.stable(profile="guard"):
        y = base**exponent
        gradients = torch.autograd.grad(y.sum(), (base, exponent))
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(g).all() for g in gradients)
    assert gradients[0][0] > 0.0
    assert y[1] == 8.0


def test_a_negative_base_keeps_its_sign():
    with instrument.stable(profile="guard"):
        y = torch.tensor([-1e30, -1e30]) ** torch.tensor([2.0, 3.0])
    assert torch.isfinite(y).all()
    assert y.sign().tolist() == [1.0, -1.0]


def test_zero_gradient_outside_where_the_config_says_so():
    x = torch.tensor([1e30, 3.0], requires_grad=True)
    with instrument.stable(profile="guard", exp={"bound": "dtype", "gradient_outside": "zero"}):
        (x**2).sum().backward()
    assert x.grad.tolist() == [0.0, 6.0]


def test_observing_leaves_the_overflow():
    with instrument.stable(profile="observe"):
        assert (torch.tensor(1e30) ** 2).isinf()


def test_poles_and_integers_are_left():
    with instrument.stable(profile="guard") as run:
        assert torch.tensor(0.0) ** -1 == math.inf
        assert torch.tensor(1e-30) ** -2 == math.inf
        assert (torch.tensor(2) ** torch.tensor(3)).item() == 8
        assert torch.tensor(math.inf) ** 2 == math.inf
    assert run.events == ()
