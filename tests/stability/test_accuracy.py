"""Reductions, norms and losses hold the stated errors in ulp, values and gradients, in every dtype."""

from __future__ import annotations

import pytest
import torch

import latent_drift.stability as stability
from tests.numerics.test_elementary import DTYPES
from tests.stability.accuracy import MEASURED, errors


@DTYPES
@pytest.mark.parametrize("label", MEASURED)
def test_value_and_gradient_stay_within_the_stated_ulp_of_mpmath(label: str, dtype: torch.dtype) -> None:
    value, gradient = errors(label, dtype)
    assert value <= MEASURED[label].max_ulp
    assert gradient <= MEASURED[label].max_gradient_ulp
    assert label.split(",")[0] in stability.__all__


def test_the_gradient_of_torchs_logsumexp_loses_digits_with_the_size_of_its_entries() -> None:
    x = (torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) + 10_000).requires_grad_()
    exact = torch.softmax(x.detach().double(), -1)

    def error(total: torch.Tensor) -> float:
        return float((torch.autograd.grad(total.sum(), x)[0].double() - exact).abs().max())

    assert error(torch.logsumexp(x, -1)) > 1e-5  # negative control
    assert error(stability.log_sum_exp(x)) < 1e-6
