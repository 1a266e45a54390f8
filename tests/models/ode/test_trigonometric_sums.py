"""Sums of multiples of an angle against direct evaluation in float64, and every derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latent_drift.models.trigonometric_sums import trigonometric_series, trigonometric_sums

STEP = torch.tensor(3.0 / 16.0, dtype=torch.float64)


def direct_sums(x: Tensor, step: Tensor, count: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    angles = x.double().unsqueeze(1) * step.double() * torch.arange(1, count + 1, dtype=torch.float64).unsqueeze(-1)
    weight = torch.ones_like(x) if weight is None else weight
    return (angles.cos() * weight.unsqueeze(1)).sum(-1), (angles.sin() * weight.unsqueeze(1)).sum(-1)


def chebyshev_cosine(theta: Tensor, count: int) -> Tensor:
    """cos(count theta) by the three-term recurrence: the cheaper form, which amplifies rounding near theta = 0."""
    before, now = torch.ones_like(theta), theta.cos()
    twice = 2 * now
    for _ in range(count - 1):
        before, now = now, twice * now - before
    return now


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 15, 16, 33])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_equal_direct_evaluation_in_float64(count: int, weighted: bool) -> None:
    torch.manual_seed(count)
    x = torch.randn(3, 50, dtype=torch.float64) * 4
    weight = torch.randn(3, 50, dtype=torch.float64) if weighted else None
    cosines, sines, present = trigonometric_sums(x, STEP, count, weight)
    expected_cosines, expected_sines = direct_sums(x, STEP, count, weight)
    torch.testing.assert_close(cosines, expected_cosines, rtol=0, atol=1e-12)
    torch.testing.assert_close(sines, expected_sines, rtol=0, atol=1e-12)
    assert present.tolist() == [50.0] * 3


def test_blocks_along_both_axes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 1000, dtype=torch.float64)
    whole = trigonometric_sums(x, STEP, 16)
    monkeypatch.setattr("latent_drift.models.trigonometric_sums._BLOCK_CPU", 64)
    for part, expected in zip(trigonometric_sums(x, STEP, 16), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)


def test_angle_addition_rounds_several_times_less_than_the_chebyshev_recurrence() -> None:
    theta = torch.linspace(1e-4, 2e-2, 20_000)
    exact = (theta.double() * 16).cos()
    chebyshev_error = (chebyshev_cosine(theta, 16).double() - exact).abs().max().item()
    one_sample_each = trigonometric_sums(theta.unsqueeze(-1), torch.tensor(1.0), 16)[0][:, -1]
    error = (one_sample_each.double() - exact).abs().max().item()
    assert chebyshev_error > 5e-6  # the negative control
    assert error < 16 * 2 * torch.finfo(torch.float32).eps / 2  # a rotation of 16 parts, each off by an ulp or two
    assert error < chebyshev_error / 4


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_first_and_second_derivatives_of_both_operators(count: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    a, b = (torch.randn(2, count, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def sums(x: Tensor) -> tuple[Tensor, Tensor]:
        return trigonometric_sums(x, STEP, count)[:2]

    def weighted(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return trigonometric_sums(x, STEP, count, weight)[:2]

    def series(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return trigonometric_series(x, STEP, a, b)

    for function, inputs in ((sums, (x,)), (weighted, (x, weight)), (series, (x, a, b))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_not_finite_are_absent(bad: float) -> None:
    x = torch.randn(2, 6, dtype=torch.float64)
    x[0, 2] = bad
    x.requires_grad_()
    assert not torch.cos(x).sum().isfinite()  # the negative control
    cosines, sines, present = trigonometric_sums(x, STEP, 16)
    kept = x.detach()[:1, [0, 1, 3, 4, 5]]
    torch.testing.assert_close(cosines[:1], direct_sums(kept, STEP, 16)[0])
    assert present.tolist() == [5.0, 6.0]
    (cosines.sum() + sines.sum()).backward()
    assert x.grad is not None
    assert x.grad[0, 2] == 0
    assert x.grad.isfinite().all()
    assert (x.grad[1] != 0).all()


def test_large_finite_samples_whose_sum_overflows_still_count() -> None:
    x = torch.full((1, 4), 3e38)
    cosines, _, present = trigonometric_sums(x, torch.tensor(1.0), 2)
    assert present.item() == 4.0
    torch.testing.assert_close(cosines[0, 0].double(), 4 * x[0, 0].double().cos(), rtol=1e-5, atol=1e-5)


def test_operators_are_registered_as_torch_expects() -> None:
    x = torch.randn(2, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.latent_drift.trigonometric_sums.default, (x, STEP.float(), 4), test_utils=("test_schema", "test_faketensor"))
    coefficients = torch.randn(2, 4, requires_grad=True)
    arguments = (x, STEP.float(), coefficients, coefficients.detach().clone().requires_grad_())
    torch.library.opcheck(torch.ops.latent_drift.trigonometric_series.default, arguments, test_utils=("test_schema", "test_faketensor"))
