import math

import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.models.raccoon_dynamics import RaccoonDynamics
from tests.benchmarks.raccoon_legacy import PlainDynamics

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def raw_log_diffusion(dynamics, value):
    """Set the network's output to one number for every input."""
    last = dynamics.log_diffusion_net[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), [(1e-4, 1.0), (0.0, 1.0), (0.3, 0.3), (1e-4, 1e-4), (0.1, 50.0), (0.0, 0.0), (0.0, 5.0), (0.0, 6e4)])
@pytest.mark.parametrize("raw", [-1e4, -90.0, -9.2, 0.0, 3.0, 90.0, 1e4])
def test_diffusion_keeps_its_bounds_as_python_floats(dtype, low, high, raw):
    dynamics = RaccoonDynamics(3, 8, sigma_min=low, sigma_max=high).to(dtype)
    raw_log_diffusion(dynamics, raw)
    drift, diffusion = dynamics(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 1, dtype=dtype))
    assert drift.dtype == diffusion.dtype == dtype
    assert torch.isfinite(diffusion).all()
    assert all(value >= low for value in diffusion.double().flatten().tolist())
    above = high if high > low else high * (1 + torch.finfo(dtype).eps)  # 1e-4 itself lies between two numbers of the dtype
    assert all(value <= above for value in diffusion.double().flatten().tolist())


def test_range_wider_than_that_of_exp_keeps_its_bounds_and_gradient():
    lowest, raw = torch.finfo(torch.float32).smallest_normal, torch.tensor(90.0)
    assert (lowest * torch.exp(torch.tensor(math.log(5.0 / lowest)))).isinf()  # the control: from 0 to 5 in one exp
    raw = torch.tensor([-1e4, 0.0, 90.0, 1e4], requires_grad=True)
    diffusion = RaccoonDynamics(3, 8, sigma_min=0.0, sigma_max=5.0).bounded_diffusion(raw)
    assert ((diffusion >= 0.0) & (diffusion <= 5.0)).all()
    assert diffusion[-1] > 4.9
    (gradient,) = torch.autograd.grad(diffusion.log().sum(), raw)
    assert gradient.isfinite().all()
    assert (gradient[1:3] > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigma_max_beyond_the_dtype_ends_where_the_dtype_does(dtype):
    dynamics = RaccoonDynamics(3, 8, sigma_max=1e6).to(dtype)
    raw_log_diffusion(dynamics, 1e4)
    diffusion = dynamics(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 1, dtype=dtype))[1]
    assert diffusion.isfinite().all()
    assert 2e4 < diffusion.max().item() <= 1e6


def test_published_form_falls_below_sigma_min_and_fails_at_zero():
    assert torch.exp(torch.tensor(math.log(1e-4))).item() < 1e-4
    with pytest.raises(ValueError, match="domain"):
        PlainDynamics(3, 8, sigma_min=0.0)


def test_no_entry_is_without_gradient_at_initialisation():
    def share_without_gradient(dynamics, net):
        raws = []
        net.register_forward_hook(lambda module, inputs, output: (output.retain_grad(), raws.append(output))[0])
        dynamics(torch.randn(64, 32), torch.zeros(64, 1))[1].sum().backward()
        return (raws[0].grad == 0).double().mean().item()

    torch.manual_seed(0)
    plain, corrected = PlainDynamics(32, 64), RaccoonDynamics(32, 64)
    assert 0.3 < share_without_gradient(plain, plain.log_diffusion_net) < 0.7
    assert share_without_gradient(corrected, corrected.log_diffusion_net) == 0.0


def test_noise_starts_near_identity_and_not_at_its_maximum():
    torch.manual_seed(0)
    z, t = torch.randn(64, 32), torch.zeros(64, 1)
    assert PlainDynamics(32, 64)(z, t)[1].mean() > 0.9
    assert RaccoonDynamics(32, 64)(z, t)[1].mean() < 0.05


@pytest.mark.parametrize("start", [60.0, -60.0])
def test_diffusion_beyond_its_range_is_learned_back(start):
    def distance_after_training(dynamics, steps):
        raw_log_diffusion(dynamics, start)
        optimizer = torch.optim.Adam(dynamics.parameters(), lr=0.1)
        for _ in range(steps):
            log_sigma = dynamics(torch.zeros(1, 2), torch.zeros(1, 1))[1].log()
            optimizer.zero_grad()
            (log_sigma - math.log(0.05)).square().mean().backward()
            optimizer.step()
        return (log_sigma - math.log(0.05)).abs().max().item()

    torch.manual_seed(0)
    assert distance_after_training(RaccoonDynamics(2, 4, legacy_compat=True), 100) > 1.0  # no gradient at all: no number of steps leads back
    assert distance_after_training(RaccoonDynamics(2, 4), 1200) < 0.1


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.full((1, 1), 0.5), torch.full((4, 1), 0.5), torch.full((4,), 0.5)])
def test_time_of_any_shape_is_the_same_time(t):
    torch.manual_seed(0)
    dynamics, z = RaccoonDynamics(3, 8), torch.randn(4, 3)
    expected = dynamics(z, torch.full((4, 1), 0.5))
    assert all(torch.equal(a, b) for a, b in zip(dynamics(z, t), expected, strict=True))
    assert torch.equal(dynamics.drift(z, t), expected[0])
    assert torch.equal(dynamics.diffusion(z, t), expected[1])


@pytest.mark.parametrize(
    "arguments",
    [{"latent_dim": 0}, {"hidden_dim": -1}, {"sigma_min": -1e-3}, {"sigma_min": 2.0}, {"sigma_max": math.inf}, {"sigma_min": math.nan}],
)
def test_impossible_dynamics_are_refused_at_construction(arguments):
    with pytest.raises(UsageError):
        RaccoonDynamics(**{"latent_dim": 3, "hidden_dim": 8, **arguments})


def test_legacy_agrees_with_the_plain_rendering():
    torch.manual_seed(1)
    plain = PlainDynamics(32, 64)
    torch.manual_seed(1)
    legacy = RaccoonDynamics(32, 64, legacy_compat=True)
    legacy_state, plain_state = legacy.state_dict(), plain.state_dict()
    assert all(torch.equal(legacy_state[k], plain_state[k]) for k in plain_state)
    z, t = torch.randn(8, 32), torch.rand(8, 1)
    for ours, theirs in zip(legacy(z, t), plain(z, t), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
