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
