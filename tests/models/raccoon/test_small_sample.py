import pytest
import torch

from latent_drift.models.goodness_of_fit import FastEppsPulley, SlicingUnivariateTest
from latent_drift.models.small_sample import SmallSampleSlicing


def both(**kwargs):
    test = {"per_sample": kwargs.pop("per_sample", True)}
    return SmallSampleSlicing(FastEppsPulley(**test), 16, **kwargs), SlicingUnivariateTest(FastEppsPulley(**test), 16, **kwargs)


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_direct_form_agrees_with_its_parent(per_sample, reduction, dtype):
    small, parent = both(per_sample=per_sample, reduction=reduction)
    x = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(3):  # the directions advance alike
        ours, theirs = small(a), parent(b)
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3 if dtype in (torch.float16, torch.bfloat16) else 1e-4, atol=1e-5)
    assert small.global_step == parent.global_step == 3


def test_gradients_of_both_orders_are_exact():
    small, _ = both()
    small.double().eval()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(small, x)
    assert torch.autograd.gradgradcheck(small, x)


@pytest.mark.parametrize("bad", [50.0, float("nan"), float("inf")])
def test_far_and_broken_samples_are_the_parents_affair(bad):
    small, parent = both()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    x[2, 1] = bad
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = small(a), parent(b)
    ours.backward()
    theirs.backward()
    assert torch.isfinite(ours)
    assert torch.equal(ours, theirs)
    assert torch.equal(a.grad, b.grad)


def test_state_is_the_parents():
    small, parent = both()
    assert list(small.state_dict()) == list(parent.state_dict())
    parent.load_state_dict(small.state_dict())


def test_evaluation_leaves_the_step_alone():
    small, _ = both()
    small.eval()
    x = torch.randn(8, 4)
    assert torch.equal(small(x), small(x))
    assert small.global_step == 0
