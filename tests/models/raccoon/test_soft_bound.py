import math

import pytest
import torch

from latent_drift.models.soft_bound import soft_bound

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_inside_and_bounded_outside(dtype):
    inside = torch.linspace(-2, 2, 41).to(dtype).clamp(-2, 2)
    assert torch.equal(soft_bound(inside), inside)
    far = torch.tensor([90.0, -90.0, 6e4, math.inf, -math.inf]).to(dtype)
    bounded = soft_bound(far)
    assert bounded.abs().max() <= 2 + math.pi / 2 + 4 * torch.finfo(dtype).eps
    assert torch.equal(bounded.sign(), far.sign())


def test_increases_strictly_and_smoothly():
    x = torch.linspace(-50, 50, 4001, dtype=torch.float64)
    assert (soft_bound(x).diff() > 0).all()
    for edge in (2.0, -2.0, 2.5, 0.3):
        assert torch.autograd.gradcheck(soft_bound, torch.tensor([edge + 1e-3, edge - 1e-3], dtype=torch.float64, requires_grad=True))


def test_gradient_returns_where_clamp_and_tanh_have_none():
    def slope(f):
        x = torch.tensor(90.0, requires_grad=True)
        f(x).backward()
        return x.grad.item()

    assert slope(lambda x: x.clamp(-2, 2)) == 0.0
    assert slope(torch.tanh) == 0.0
    assert slope(soft_bound) == pytest.approx(1 / (1 + 88.0**2), rel=1e-5)


def test_values_and_gradients_inside_are_those_of_the_formula_bit_for_bit():
    def formula(x, lower, upper):
        core = torch.nn.functional.hardtanh(x, lower, upper)
        return core + torch.atan(x - core)

    inside = torch.cat([torch.tensor([-3.0, 2.0, 0.0, -0.0]), torch.linspace(-3, 2, 997)])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        ours, theirs = (inside.to(dtype).clamp(-3, 2).requires_grad_() for _ in range(2))
        value, expected = soft_bound(ours, -3.0, 2.0), formula(theirs, -3.0, 2.0)
        weights = torch.randn(len(inside), dtype=dtype)
        (value * weights).sum().backward()
        (expected * weights).sum().backward()
        assert torch.equal(value, expected)
        assert torch.equal(ours.grad, theirs.grad)


def test_one_entry_outside_sends_all_through_the_formula():
    x = torch.tensor([0.5, 2.5, float("nan"), -7.0], requires_grad=True)
    y = soft_bound(x)
    y.nansum().backward()
    assert y[0] == 0.5
    y = y.detach()
    assert y[1].item() == pytest.approx(2.0 + math.atan(0.5))
    assert y[2].isnan()
    assert y[3].item() == pytest.approx(-2.0 - math.atan(5.0))
    assert x.grad[1].item() == pytest.approx(0.8)


def test_no_value_is_looked_at_where_there_is_none():
    x = torch.linspace(-4, 4, 12).reshape(3, 4)
    assert torch.equal(torch.vmap(soft_bound)(x), soft_bound(x))
    torch.testing.assert_close(torch.func.grad(lambda v: soft_bound(v).sum())(x), 1 / (1 + (x.abs() - 2).clamp(min=0) ** 2))
    assert soft_bound(x.to("meta")).device.type == "meta"
    assert soft_bound(x[:0]).shape == (0, 4)
