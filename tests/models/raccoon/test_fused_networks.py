"""The flow and the noisy path as single functions: what they agree with, and where they step aside."""

import copy
import math

import pytest
import torch
from torch import nn

from latent_drift.models import coupling_flow, raccoon_dynamics
from latent_drift.models.coupling_flow import RaccoonFlow
from latent_drift.models.raccoon_dynamics import RaccoonDynamics
from latent_drift.models.small_kl import small_kl
from latent_drift.numerics.gaussian import kl_divergence

TIMES = (0.0, 0.05, 0.1)


class Flow:
    """The flow at time 0.5: its value and log-determinant."""

    module, counted = coupling_flow, "fused_flow"

    def __init__(self, dtype, dim=6, hidden=10):
        torch.manual_seed(0)
        self.net = RaccoonFlow(dim, hidden, num_layers=3, time_dim=4).to(dtype)
        self.x = torch.randn(5, dim, dtype=dtype, requires_grad=True)

    def __call__(self, x):
        return self.net(x, 0.5)


class Path:
    """The noisy path of three times."""

    module, counted = raccoon_dynamics, "fused_path"

    def __init__(self, dtype, dim=6, hidden=10):
        torch.manual_seed(0)
        self.net = RaccoonDynamics(dim, hidden).to(dtype)
        with torch.no_grad():
            for p in self.net.parameters():
                p.add_(torch.randn_like(p), alpha=0.3)
        self.x = torch.randn(5, dim, dtype=dtype, requires_grad=True)
        self.noises = [torch.randn(5, dim, dtype=dtype) for _ in TIMES[1:]]

    def __call__(self, x):
        return (self.net.travel(x, TIMES, self.noises),)


CASES = [Flow, Path]


@pytest.fixture
def fused(monkeypatch):
    """How often each of the two was evaluated as one function: a list that grows."""
    calls = []
    for case in CASES:
        real = getattr(case.module, case.counted)

        def counting(*args, _real=real):
            result = _real(*args)
            if result is not None:
                calls.append(_real.__name__)
            return result

        monkeypatch.setattr(case.module, case.counted, counting)
    return calls


def module_by_module(case, monkeypatch, work):
    with monkeypatch.context() as patch:
        patch.setattr(case.module, case.counted, lambda *args: None)
        return work()


def gradients(case):
    outputs = case(case.x)
    seeds = [torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).view_as(y) for y in outputs]
    return [y.detach() for y in outputs], torch.autograd.grad(outputs, [case.x, *case.net.parameters()], seeds)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_the_modules(kind, dtype, fused, monkeypatch):
    case = kind(dtype, 32, 64)
    values, ours = gradients(case)
    assert fused == [kind.counted]
    expected, theirs = module_by_module(case, monkeypatch, lambda: gradients(case))
    tolerance = 50 * torch.finfo(dtype).eps
    for a, b in zip((*values, *ours), (*expected, *theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))
    assert torch.equal(values[0], expected[0]) or kind is Path  # the flow's value bit for bit


@pytest.mark.parametrize("kind", CASES)
def test_gradients_of_both_orders_are_exact(kind, fused):
    case = kind(torch.float64, 3, 4)
    names = [name for name, _ in case.net.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in case.net.parameters()]

    def value(x, *weights):
        for name, w in zip(names, weights, strict=True):
            owner, _, key = name.rpartition(".")
            case.net.get_submodule(owner)._parameters[key] = w
        return case(x)

    assert torch.autograd.gradcheck(value, (case.x, *weights))
    assert torch.autograd.gradgradcheck(value, (case.x, *weights))
    assert fused


@pytest.mark.parametrize("kind", CASES)
def test_without_gradients_the_value_is_the_same(kind, fused):
    case = kind(torch.float32)
    with_graph = case(case.x)
    with torch.no_grad():
        without = case(case.x)
    assert len(fused) == 2
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(with_graph, without, strict=True))


@pytest.mark.parametrize("kind", CASES)
def test_frozen_weights_get_no_gradient_and_their_input_does(kind, fused):
    case = kind(torch.float32)
    first, *others = case.net.parameters()
    first.requires_grad_(False)
    sum(y.sum() for y in case(case.x)).backward()
    assert fused
    assert first.grad is None
    assert case.x.grad is not None
    assert all(p.grad is not None for p in others)


@pytest.mark.parametrize("kind", CASES)
def test_hooks_on_any_module_are_called(kind, fused):
    case = kind(torch.float32)
    expected = case(case.x)
    for module in case.net.modules():
        if not isinstance(module, nn.SiLU | nn.Linear | nn.Sequential) or module is case.net:
            continue
        seen = []
        handle = module.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        fused.clear()
        found = case(case.x)
        handle.remove()
        assert seen, module
        assert not fused
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", CASES)
def test_another_activation_is_respected(kind, fused):
    case = kind(torch.float32)
    for module in case.net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.Tanh())
    case(case.x)
    assert not fused


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, at the first forward-mode derivative
@pytest.mark.parametrize("kind", CASES)
def test_transforms_autocast_and_forward_mode_take_the_modules(kind, fused):
    case = kind(torch.float32)

    def total(x):
        return sum(y.sum() for y in case(x))

    by_transform = torch.func.grad(total)(case.x.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        case(case.x)
    with torch.autograd.forward_ad.dual_level():
        case(torch.autograd.forward_ad.make_dual(case.x.detach(), torch.ones_like(case.x)))
    assert not fused
    (ours,) = torch.autograd.grad(total(case.x), case.x)
    assert fused
    torch.testing.assert_close(ours, by_transform)


@pytest.mark.parametrize("kind", CASES)
def test_a_weight_changed_between_the_passes_is_an_error(kind):
    case = kind(torch.float32)
    total = sum(y.sum() for y in case(case.x))
    with torch.no_grad():
        next(iter(case.net.parameters())).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("far", [50.0, math.nan, math.inf])
def test_far_and_broken_latents_go_through_the_bounds_of_the_layers(far, fused, monkeypatch):
    case = Flow(torch.float32)
    with torch.no_grad():
        case.x[2, 1] = far
    values, ours = gradients(case)
    assert not fused
    expected, theirs = module_by_module(case, monkeypatch, lambda: gradients(case))
    torch.testing.assert_close((*values, *ours), (*expected, *theirs), rtol=0, atol=0, equal_nan=True)


def test_steep_scales_go_through_the_bounds_of_the_layers(fused):
    case = Flow(torch.float32)
    nn.init.constant_(case.net.flows[1].transform_net[-1].bias, 20.0)
    case(case.x)
    assert not fused


def test_a_kept_time_follows_the_frequencies():
    flow = RaccoonFlow(4, 8)
    z = torch.randn(3, 4)
    first = flow(z, 0.5)[0]
    torch.testing.assert_close(first, flow(z, torch.full((3, 1), 0.5))[0], rtol=0, atol=0)
    with torch.no_grad():
        flow.time_embed.freqs.mul_(2.0)
    assert not torch.equal(flow(z, 0.5)[0], first)
    torch.testing.assert_close(flow(z, 0.5)[0], flow(z, torch.full((3, 1), 0.5))[0], rtol=0, atol=0)
    assert copy.deepcopy(flow)._embedded is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_small_kl_is_the_kl_and_never_negative(dtype):
    torch.manual_seed(0)
    mean, logvar = torch.randn(6, 4).to(dtype), (3 * torch.randn(6, 4)).to(dtype)
    prior_mean, prior_logvar = torch.randn(4).to(dtype), torch.randn(4).to(dtype)
    given = [t.requires_grad_() for t in (mean, logvar, prior_mean, prior_logvar)]
    ours = small_kl(*given)
    wide = [t.detach().double().requires_grad_() for t in given]
    exact = kl_divergence(*wide).mean()
    assert ours.item() == pytest.approx(exact.item(), rel=8 * torch.finfo(dtype).eps)
    for a, b in zip(torch.autograd.grad(ours, given), torch.autograd.grad(exact, wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=16 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    same = mean.detach()[:1]
    assert small_kl(same, same, same[0], same[0]).item() == 0.0
    naive = torch.exp(torch.tensor(1e-5)) - 1 - torch.tensor(1e-5)  # in float32: what this form would cancel to
    assert abs(naive.item() / 5e-11 - 1) > 100


def test_small_kl_has_exact_gradients_of_both_orders():
    torch.manual_seed(0)
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2), (3, 2), (2,), (2,))]
    assert torch.autograd.gradcheck(small_kl, given)
    assert torch.autograd.gradgradcheck(small_kl, given)
