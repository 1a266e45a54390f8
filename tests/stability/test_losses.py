"""Losses at the edges, in every dtype, against float64 and the forms they replace."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from latent_drift.config.active import using
from latent_drift.errors import UsageError
from latent_drift.stability import (
    StableLosses,
    gaussian_nll,
    stable_binary_cross_entropy,
    stable_cross_entropy,
    stable_kl_divergence,
    stable_vae_loss,
)
from tests.numerics.test_elementary import DTYPES


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_is_torchs_where_that_is_finite(dtype: torch.dtype, reduction: str) -> None:
    logits = (torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4).to(dtype)
    targets = torch.randint(0, 5, (12, 3), generator=torch.Generator().manual_seed(1))
    targets[0, 0] = -100
    exact = F.cross_entropy(logits.double(), targets, reduction=reduction)
    ours = stable_cross_entropy(logits, targets, reduction)
    assert ours.dtype == dtype
    assert torch.allclose(ours.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    smooth = torch.softmax(torch.randn(12, 5, 3, dtype=torch.float64), 1)
    assert torch.allclose(stable_cross_entropy(logits.double(), smooth), F.cross_entropy(logits.double(), smooth), rtol=1e-12)
    assert torch.allclose(
        stable_cross_entropy(logits.double(), targets, label_smoothing=0.1), F.cross_entropy(logits.double(), targets, label_smoothing=0.1)
    )


@DTYPES
def test_cross_entropy_of_masked_and_infinite_logits_is_finite_with_finite_gradients(dtype: torch.dtype) -> None:
    rows = [[-math.inf, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3, [0.0, 1.0, 2.0]]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    targets = torch.tensor([0, 1, 0, 2])
    naive = F.cross_entropy(logits, targets)
    assert not torch.isfinite(naive)  # negative control
    (gradient,) = torch.autograd.grad(naive, logits)
    assert gradient.isnan().any()
    loss = stable_cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[3] != 0).all()
    with using(losses={"nonfinite_elements": "omit"}):
        assert stable_cross_entropy(logits, targets).item() == pytest.approx(F.cross_entropy(logits[3:].double(), targets[3:]).item(), rel=1e-2)
    with using(losses={"nonfinite_elements": "leave"}):
        assert stable_cross_entropy(logits, targets).isinf()


def test_the_worst_errors_keep_their_gradient_where_a_clamp_at_100_takes_it() -> None:
    logits = torch.tensor([[500.0, 0.0]], requires_grad=True)
    target = torch.tensor([1])
    clamped = -torch.log_softmax(logits, 1).clamp(min=-100)[0, 1]
    assert (torch.autograd.grad(clamped, logits)[0] == 0).all()  # negative control
    assert torch.autograd.grad(stable_cross_entropy(logits, target), logits)[0].tolist() == [[1.0, -1.0]]
    assert torch.autograd.gradcheck(
        lambda x: stable_cross_entropy(x, torch.tensor([1, 0])), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    )


def test_empty_batches_have_a_loss_of_zero_with_a_graph() -> None:
    logits = torch.empty(0, 3, requires_grad=True)
    assert F.cross_entropy(logits, torch.empty(0, dtype=torch.long)).isnan()  # negative control
    loss = stable_cross_entropy(logits, torch.empty(0, dtype=torch.long))
    assert loss.item() == 0
    assert loss.requires_grad


@DTYPES
def test_kl_is_zero_at_equality_never_negative_and_survives_80(dtype: torch.dtype) -> None:
    logvar = torch.full((4, 3), -18.0 if dtype != torch.float16 else -9.0, dtype=dtype, requires_grad=True)
    mean = torch.randn(4, 3).to(dtype)
    assert stable_kl_divergence(mean, logvar, mean, logvar.detach()).item() == 0
    for value in (-80.0, 80.0):
        extreme = torch.full((4, 3), value, dtype=dtype, requires_grad=True)
        loss = stable_kl_divergence(torch.zeros_like(extreme), extreme)
        (gradient,) = torch.autograd.grad(loss, extreme)
        assert loss.isfinite()
        assert loss >= 0
        assert gradient.isfinite().all()
        assert (gradient.sign() == math.copysign(1, value)).all()
    assert StableLosses.stable_kl_divergence(mean, logvar, eps=1e-6).dtype == dtype


def test_kl_reductions_sum_the_latent_axis_and_average_the_batch() -> None:
    mean, logvar = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    exact = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.tensor(0.5).double(), torch.tensor(0.25).double().exp()))
    assert torch.allclose(stable_kl_divergence(mean, logvar, 0.5, 0.5), exact.sum(-1).mean())
    assert torch.allclose(stable_kl_divergence(mean, logvar, 0.5, 0.5, reduction="none"), exact)
    with pytest.raises(UsageError, match="reduction must be one of"):
        stable_kl_divergence(mean, logvar, reduction="median")


@DTYPES
def test_bce_at_0_and_1_is_finite_with_its_strongest_gradient_there(dtype: torch.dtype) -> None:
    p = torch.tensor([1.0, 0.0, 0.3], dtype=dtype, requires_grad=True)
    target = torch.tensor([0.0, 1.0, 1.0], dtype=dtype)
    clamped = p.clamp(1e-4, 1 - 1e-4)
    naive = -(target * clamped.log() + (1 - target) * (1 - clamped).log())
    if dtype == torch.float16:
        assert naive.isinf().any()  # negative control: 1 - 1e-4 is 1
    (gradient,) = torch.autograd.grad(naive[:2].sum(), p, allow_unused=True)
    assert (gradient[:2] == 0).any() or gradient.isnan().any() or dtype == torch.float16
    loss = stable_binary_cross_entropy(p, target)
    (gradient,) = torch.autograd.grad(loss, p)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0] > 0 > gradient[1]
    assert gradient[:2].abs().min() > gradient[2].abs()


def test_bce_is_torchs_inside() -> None:
    p = torch.rand(50, dtype=torch.float64)
    t = torch.rand(50, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        assert torch.allclose(stable_binary_cross_entropy(p, t, reduction=reduction), F.binary_cross_entropy(p, t, reduction=reduction), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: stable_binary_cross_entropy(x, t), p.clamp(0.05, 0.95).requires_grad_())


@DTYPES
def test_gaussian_nll_is_finite_for_log_variances_in_80(dtype: torch.dtype) -> None:
    logvar = torch.linspace(-80, 80, 33).to(dtype).requires_grad_()
    mean = torch.ones_like(logvar).detach().requires_grad_()
    loss = gaussian_nll(mean, torch.zeros_like(mean), logvar)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (mean, logvar)))
    half = gaussian_nll(torch.zeros(1), torch.ones(1), torch.zeros(1), full=True)
    assert half.item() == pytest.approx(0.5 * (1 + math.log(2 * math.pi)))


def test_vae_loss_is_the_elbo_and_its_log_variance_returns() -> None:
    x, mu = torch.rand(6, 10), torch.randn(6, 3)
    logvar = torch.randn(6, 3)
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum()
    exact = (F.binary_cross_entropy(x.clamp(0.01, 0.99), x, reduction="sum") + kl) / 6
    assert stable_vae_loss(x.clamp(0.01, 0.99), x, mu, logvar).item() == pytest.approx(exact.item(), rel=1e-5)
    far = torch.full((6, 3), 200.0, requires_grad=True)
    naive = F.mse_loss(x, x) + 0.5 * (far.exp() - 1 - far).sum()
    assert naive.isinf()  # negative control
    loss = stable_vae_loss(x, x, mu, far, likelihood="gaussian")
    (gradient,) = torch.autograd.grad(loss, far)
    assert loss.isfinite()
    assert (gradient > 0).all()
    with pytest.raises(UsageError, match="one shape"):
        stable_vae_loss(x, x[:3], mu, logvar)
    with pytest.raises(UsageError, match="likelihood"):
        stable_vae_loss(x, x, mu, logvar, likelihood="poisson")
    assert stable_vae_loss(torch.randn(2, 3) * 5, torch.randn(2, 3), mu[:2], logvar[:2]).isfinite()


@pytest.mark.parametrize("name", ["cross_entropy", "kl", "bce", "nll"])
def test_losses_compile_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()
    x = torch.rand(4, 3).requires_grad_()
    functions = {
        "cross_entropy": lambda v: stable_cross_entropy(v, torch.tensor([0, 1, 2, 0])),
        "kl": lambda v: stable_kl_divergence(v, v),
        "bce": lambda v: stable_binary_cross_entropy(v, v.detach()),
        "nll": lambda v: gaussian_nll(v, v.detach() + 1, v),
    }
    compiled = torch.compile(functions[name], fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), functions[name](x))
    assert torch.allclose(torch.autograd.grad(compiled(x), x)[0], torch.autograd.grad(functions[name](x), x)[0], atol=1e-6)
