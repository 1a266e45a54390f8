"""Gaussian densities and divergences against mpmath, at equality, near it, and far outside a dtype's range."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from latent_drift.errors import UsageError
from latent_drift.numerics import gaussian
from tests.numerics.test_elementary import DTYPES, REFUSED
from tests.numerics.ulp import ulps


def _kl_exact(mq: float, lq: float, mp: float, lp: float) -> float:
    with mpmath.workdps(80):
        d = mpmath.mpf(lq) - mpmath.mpf(lp)
        return float((mpmath.exp(d) - 1 - d + (mpmath.mpf(mq) - mpmath.mpf(mp)) ** 2 * mpmath.exp(-mpmath.mpf(lp))) / 2)


@DTYPES
def test_kl_is_exactly_zero_for_equal_distributions_where_an_epsilon_makes_it_negative(dtype: torch.dtype) -> None:
    logvar = torch.tensor([-18.0, -4.0, 0.0, 10.0], dtype=dtype)
    mean = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=dtype)
    for epsilon, published in ((1e-8, -0.198), (1e-6, -0.49)):
        variance = logvar[0].double().exp()
        biased = 0.5 * (variance / (variance + epsilon) - 1)
        assert biased.item() == pytest.approx(published, abs=0.01)  # negative control: the audit's remedy biases more
    assert gaussian.kl_divergence(mean, logvar, mean, logvar).tolist() == [0.0] * 4


@DTYPES
def test_kl_matches_mpmath_near_and_far(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    spread = torch.logspace(-6, 0.6, 60, dtype=torch.float64)
    lq = (torch.randn(60, generator=generator, dtype=torch.float64) * spread).to(dtype)
    lp = (torch.randn(60, generator=generator, dtype=torch.float64) * spread).to(dtype)
    mq, mp = torch.randn(2, 60, generator=generator, dtype=torch.float64).to(dtype)
    exact = torch.tensor([_kl_exact(*v) for v in zip(mq.tolist(), lq.tolist(), mp.tolist(), lp.tolist(), strict=True)], dtype=torch.float64)
    # cancellation of the inputs (lq - lp, mq - mp) is exact or one rounding; the formula itself adds a few
    assert ulps(gaussian.kl_divergence(mq, lq, mp, lp), exact).max() <= 12


def test_the_usual_form_loses_its_digits_near_equality() -> None:
    lq = torch.tensor([1e-4])
    exact = _kl_exact(0, lq.item(), 0, 0)
    usual = (0.5 * (lq.exp() - 1 - lq)).double()
    assert abs(usual.item() / exact - 1) > 0.1  # negative control
    assert gaussian.kl_divergence(torch.zeros(1), lq).item() == pytest.approx(exact, rel=1e-6)


@DTYPES
def test_kl_is_never_negative_and_finite_with_its_gradients_for_log_variances_in_80(dtype: torch.dtype) -> None:
    grid = torch.linspace(-80, 80, 33, dtype=torch.float64).to(dtype)
    lq, lp, diff = (
        v.reshape(-1).clone().requires_grad_() for v in torch.meshgrid(grid, grid, torch.tensor([0, 1e-3, 1, 100.0]).to(dtype), indexing="ij")
    )
    value = gaussian.kl_divergence(diff, lq, 0.0, lp)
    assert (value >= 0).all()
    assert value.isfinite().all()
    for gradient in torch.autograd.grad(value.mean(), (diff, lq, lp)):
        assert gradient.isfinite().all()
    # negative control: the published form
    q, p = lq.detach().requires_grad_(), lp.detach().requires_grad_()
    naive = 0.5 * (p - q + (q.exp() + diff.detach() ** 2) / (p.exp() + 1e-8) - 1)
    gradients = torch.autograd.grad(naive.mean(), (q, p))
    assert (naive < 0).any() or not all(g.isfinite().all() for g in gradients)


def test_kl_differentiates_twice_and_compiles_and_vmaps() -> None:
    args = tuple(torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(4))
    assert torch.autograd.gradcheck(gaussian.kl_divergence, args)
    assert torch.autograd.gradgradcheck(gaussian.kl_divergence, args)
    torch._dynamo.reset()
    compiled = torch.compile(gaussian.kl_divergence, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*args), gaussian.kl_divergence(*args), rtol=1e-14)
    rows = tuple(torch.stack([a.detach()] * 3) for a in args)
    assert torch.equal(torch.func.vmap(gaussian.kl_divergence)(*rows)[1], gaussian.kl_divergence(*args))


@DTYPES
def test_log_prob_and_nll_match_torch_in_float64(dtype: torch.dtype) -> None:
    x, mean, logvar = (torch.randn(3, 50, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).to(dtype)
    exact = torch.distributions.Normal(mean.double(), (0.5 * logvar.double()).exp()).log_prob(x.double())
    tolerance = 8 * torch.finfo(dtype).eps * exact.abs().clamp(min=1)
    assert ((gaussian.log_prob(x, mean, logvar).double() - exact).abs() <= tolerance).all()
    assert ((gaussian.negative_log_likelihood(mean, x, logvar, full=True).double() + exact).abs() <= tolerance).all()
    halved = gaussian.negative_log_likelihood(mean, x, logvar).double() + exact + 0.5 * math.log(2 * math.pi)
    assert (halved.abs() <= tolerance * 2).all()


def test_nll_has_a_gradient_where_torchs_variance_floor_has_none() -> None:
    logvar = torch.tensor([-20.0], requires_grad=True)
    mean, target = torch.zeros(1), torch.tensor([0.01])
    torchs = F.gaussian_nll_loss(mean, target, logvar.exp(), eps=1e-6)
    exact = 0.5 * (1 - 0.01**2 * math.exp(20))
    (theirs,) = torch.autograd.grad(torchs, logvar)
    assert abs(theirs.item() / exact - 1) > 0.5  # negative control
    (ours,) = torch.autograd.grad(gaussian.negative_log_likelihood(mean, target, logvar).sum(), logvar)
    assert ours.item() == pytest.approx(exact, rel=1e-5)


def test_dtype_argument_keeps_half_precision_terms_wide() -> None:
    mean = torch.full((1000,), 30.0, dtype=torch.float16)
    narrow = gaussian.kl_divergence(mean, torch.zeros_like(mean))
    assert narrow.dtype == torch.float16
    assert narrow.sum().isinf()  # 1000 * 450 does not fit
    assert gaussian.kl_divergence(mean, torch.zeros_like(mean), dtype=torch.float32).sum().item() == 450_000


def test_nan_is_not_hidden() -> None:
    assert gaussian.kl_divergence(torch.tensor([math.nan]), torch.zeros(1)).isnan().all()
    assert gaussian.kl_divergence(torch.zeros(1), torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_real_and_dense_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UsageError, match=kind):
        gaussian.kl_divergence(REFUSED[kind](), torch.zeros(2))
