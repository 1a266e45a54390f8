"""The prior: a scale that cannot blow up or get stuck, and a vector field that trains at any depth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from latent_drift.config import load
from latent_drift.errors import UsageError
from latent_drift.models.prior import PriorInitDistribution, PriorODE

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def test_distribution_is_a_diagonal_normal_with_scale_exp_log_s() -> None:
    prior = PriorInitDistribution(3)
    assert {n: tuple(p.shape) for n, p in prior.named_parameters()} == {"m": (1, 3), "log_s": (1, 3)}
    with torch.no_grad():
        prior.m.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        prior.log_s.copy_(torch.tensor([[0.0, -1.0, 2.0]]))
    d = prior()
    torch.testing.assert_close(d.mean, prior.m)
    torch.testing.assert_close(d.stddev, prior.log_s.exp())
    torch.testing.assert_close(d.scale, prior.log_s.exp())
    torch.testing.assert_close(d.loc, prior.m)
    x = torch.randn(7, 3)
    expected = (-0.5 * ((x - prior.m) / prior.log_s.exp()).square() - prior.log_s - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(d.log_prob(x), expected)
    assert d.rsample((4,)).shape == (4, 1, 3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pushed", [90.0, 1e4, -90.0, -1e4])
def test_a_log_scale_that_was_pushed_out_stays_finite_and_returns(dtype: torch.dtype, pushed: float) -> None:
    prior = PriorInitDistribution(2).to(dtype)
    with torch.no_grad():
        prior.log_s.fill_(pushed)
    naive = prior.log_s.exp().square()
    if not (dtype == torch.float64 and abs(pushed) == 90.0) and pushed != -90.0:
        assert not naive.isfinite().all() or (naive == 0).all()  # the negative control
    clamped = prior.log_s.clamp(-10, 2)
    assert (torch.autograd.grad(clamped.sum(), prior.log_s)[0] == 0).all()  # stuck for ever: the plain clamp
    scale = prior().stddev
    assert scale.isfinite().all()
    assert (scale > 0).all()
    assert scale.float().square().isfinite().all()
    # a loss that wants scale 1 leads back: the gradient points outward, so that a descent step goes inward
    loss = prior.log_scale().float().square().sum()
    (gradient,) = torch.autograd.grad(loss, prior.log_s)
    assert gradient.isfinite().all()
    assert (gradient.sign() == math.copysign(1.0, pushed)).all()
    # and one that wants it further out does not push on
    further_out = -math.copysign(1.0, pushed) * prior.log_scale().float().sum()
    (outward,) = torch.autograd.grad(further_out, prior.log_s)
    assert (outward == 0).all()


def test_log_variance_of_ninety_learns_back_to_the_data() -> None:
    prior = PriorInitDistribution(4)
    with torch.no_grad():
        prior.log_s.fill_(90.0)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1.0)
    data = torch.randn(256, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 1.0
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 1.0 if step < 200 else 0.02
        loss = -prior().log_prob(data).mean()
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(prior().stddev[0], data.std(0), rtol=0.1, atol=0.02)


def test_config_decides_the_bounds_and_published_form_has_none() -> None:
    config = load(latent={"log_std_max": 1.0})
    prior = PriorInitDistribution(1, config=config)
    published = PriorInitDistribution(1, legacy_compat=True)
    with torch.no_grad():
        prior.log_s.fill_(5.0)
        published.log_s.fill_(90.0)
    assert prior().stddev.item() == pytest.approx(math.e)
    assert published().stddev.isinf()


# --- the vector field ----------------------------------------------------------------------------------------------


def test_drift_net_holds_depth_plus_one_linear_layers_at_top_level() -> None:
    for depth in (1, 5, 12):
        field = PriorODE(3, 7, depth)
        kinds = [type(m).__name__ for m in field.drift_net]
        assert kinds == ["Linear", "LayerNorm", "SiLU"] * depth + ["LayerNorm", "Linear"]
        linears = [m for m in field.drift_net if isinstance(m, nn.Linear)]
        assert (linears[0].in_features, linears[-1].out_features) == (4, 3)
        assert all((m.bias == 0).all() for m in linears)
        for m in linears[:-1]:
            assert m.weight.abs().max() <= 0.1 * math.sqrt(6 / (m.in_features + m.out_features))
        torch.testing.assert_close(linears[-1].weight @ linears[-1].weight.T, torch.eye(3))


def test_layers_are_initialised_once_all_are_built() -> None:
    torch.manual_seed(0)
    field = PriorODE(3, 7, depth=2)
    torch.manual_seed(0)
    linears = [nn.Linear(4, 7), nn.Linear(7, 7), nn.Linear(7, 3)]
    for linear in linears[:-1]:
        nn.init.xavier_uniform_(linear.weight, gain=0.1)
    nn.init.orthogonal_(linears[-1].weight)
    found = [m for m in field.drift_net if isinstance(m, nn.Linear)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(found, linears, strict=True))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_time_of_every_shape_gives_the_same_drift(batch: int) -> None:
    field = PriorODE(3, 8)
    z = torch.randn(batch, 3)
    expected = field.drift_net(torch.cat([z, torch.full((batch, 1), 0.25)], dim=1))
    for t in (torch.tensor(0.25), torch.full((1, 1), 0.25), torch.full((batch, 1), 0.25), torch.full((batch,), 0.25), torch.full((1,), 0.25), 0.25):
        torch.testing.assert_close(field(z, t), expected, rtol=0, atol=0)  # type: ignore[arg-type]
    path = torch.randn(batch, 6, 3)
    times = torch.linspace(0, 1, 6).view(1, 6, 1)
    rows = torch.stack([field(path[:, i], times[0, i, 0]) for i in range(6)], dim=1)
    torch.testing.assert_close(field(path, times), rows)


def test_shapes_that_do_not_fit_are_refused_by_name() -> None:
    field = PriorODE(3, 8)
    with pytest.raises(UsageError, match=r"\(\.\.\., 3\)"):
        field(torch.zeros(2, 4), torch.tensor(0.0))
    with pytest.raises(UsageError, match="broadcast"):
        field(torch.zeros(2, 3), torch.zeros(3, 1))
    for arguments, named in (((0, 8), "latent_size"), ((3, 0), "hidden_size"), ((3, 8, 0), "depth")):
        with pytest.raises(UsageError, match=named):
            PriorODE(*arguments)
    with pytest.raises(UsageError, match="latent_size"):
        PriorInitDistribution(0)


def gradient_ratio(field: PriorODE) -> float:
    """Largest over smallest gradient norm among the Linear weights."""
    torch.manual_seed(1)
    z = torch.randn(64, field.latent_size)
    field(z, torch.tensor(0.5)).square().sum().backward()
    norms = [m.weight.grad.norm().item() for m in field.drift_net if isinstance(m, nn.Linear) and m.weight.grad is not None]
    assert len(norms) == field.depth + 1
    return max(norms) / min(norms)


def test_gradient_reaches_the_first_of_a_hundred_layers() -> None:
    torch.manual_seed(0)
    published = gradient_ratio(PriorODE(64, 128, depth=100, legacy_compat=True))
    torch.manual_seed(0)
    corrected = gradient_ratio(PriorODE(64, 128, depth=100))
    assert published > 30  # the negative control
    assert corrected < 4


def fit(field: PriorODE, steps: int) -> float:
    """The mean squared error left of a learnable drift, relative to the start."""
    torch.manual_seed(2)
    z = torch.randn(128, field.latent_size)
    target = torch.tanh(z.roll(1, dims=1)) - 0.5 * z
    optimizer = torch.optim.AdamW(field.parameters(), lr=1e-3)
    losses: list[float] = []
    for _ in range(steps):
        loss = (field(z, torch.tensor(0.5)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] / losses[0]


def test_a_prior_of_a_hundred_layers_learns() -> None:
    torch.manual_seed(0)
    published = fit(PriorODE(8, 32, depth=100, legacy_compat=True), 40)
    torch.manual_seed(0)
    corrected = fit(PriorODE(8, 32, depth=100), 40)
    assert corrected < 0.5
    assert corrected < published


@pytest.mark.parametrize("depth", [5, 8])
def test_depths_of_published_models_compute_what_they_did(depth: int) -> None:
    torch.manual_seed(0)
    corrected = PriorODE(4, 8, depth)
    published = PriorODE(4, 8, depth, legacy_compat=True)
    published.load_state_dict(corrected.state_dict())
    z = torch.randn(3, 4)
    assert torch.equal(corrected(z, torch.tensor(0.3)), published(z, torch.tensor(0.3)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("magnitude", [0.0, 1.0, 1e4])
def test_drift_is_finite_in_every_dtype_for_near_and_far_states(dtype: torch.dtype, magnitude: float) -> None:
    field = PriorODE(6, 16, depth=100).to(dtype)
    z: Tensor = (torch.full((3, 6), magnitude)).to(dtype).requires_grad_()
    dz = field(z, torch.tensor(1.0))
    assert dz.dtype == dtype
    assert dz.isfinite().all()
    dz.float().sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
