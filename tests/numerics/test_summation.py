"""Compensated and pairwise sums against math.fsum."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.numerics.summation import kahan_sum, pairwise_sum
from tests.numerics.test_elementary import DTYPES, REFUSED
from tests.numerics.ulp import spacing


def _cancelling(dtype: torch.dtype, n: int = 4097) -> Tensor:
    """Numbers of very different size whose sum is small beside them."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(n, generator=g, dtype=torch.float64) * torch.exp2(torch.randint(-3, 4, (n,), generator=g).double())
    x = x.to(dtype)
    return torch.cat([x, -x[: n // 2].flip(0), torch.tensor([2.0**-8], dtype=dtype)])


@DTYPES
def test_kahan_sum_is_within_one_rounding_of_fsum(dtype: torch.dtype) -> None:
    x = _cancelling(dtype)
    exact = math.fsum(x.double().tolist())
    bound = spacing(torch.tensor(exact, dtype=torch.float64), dtype).item()
    assert abs(kahan_sum(x).item() - exact) <= bound
    assert kahan_sum(x).dtype == dtype


def test_naive_sums_lose_what_kahan_keeps() -> None:
    x = torch.cat([torch.tensor([1e8]), torch.full((1000,), 0.25), torch.tensor([-1e8])])
    naive = torch.tensor(0.0)
    for value in x:
        naive += value
    assert naive.item() != 250  # negative control: element by element
    assert pairwise_sum(x).item() != 250
    assert kahan_sum(x).item() == 250


@DTYPES
def test_pairwise_sum_keeps_its_bound(dtype: torch.dtype) -> None:
    x = _cancelling(dtype)
    values = x.double().tolist()
    exact, size = math.fsum(values), math.fsum(map(abs, values))
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    bound = math.ceil(math.log2(len(values))) * torch.finfo(wide).eps / 2 * size + spacing(torch.tensor(exact).double(), dtype).item() / 2
    assert abs(pairwise_sum(x).item() - exact) <= bound


def test_pairwise_beats_a_running_sum_of_a_million_tenths() -> None:
    x = torch.full((1_000_000,), 0.1)
    exact = math.fsum(x.double().tolist())
    running = float(np.cumsum(x.numpy(), dtype=np.float32)[-1])  # one after the other
    assert abs(running - exact) > 100
    assert abs(pairwise_sum(x).item() / exact - 1) < 1e-6


@pytest.mark.parametrize("function", [kahan_sum, pairwise_sum])
def test_dims_shapes_gradients_and_special_values(function: object) -> None:
    f = function
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    for dim in (0, -1, (0, 2), None):
        for keepdim in (False, True):
            expected = x.sum(dim=dim, keepdim=keepdim) if dim is not None else x.sum(dim=(0, 1, 2), keepdim=keepdim)
            assert torch.allclose(f(x, dim, keepdim), expected, rtol=1e-13)
            assert f(x, dim, keepdim).shape == expected.shape
    assert torch.allclose(f(x.transpose(0, 2)[::2], 0), x.transpose(0, 2)[::2].sum(0), rtol=1e-13)
    assert f(torch.empty(2, 0), 1).tolist() == [0, 0]
    assert f(torch.tensor(3.0)).item() == 3
    assert f(torch.tensor([math.inf, 1.0, 2.0])).item() == math.inf
    assert f(torch.tensor([math.inf, -math.inf, 2.0])).isnan()
    assert f(torch.tensor([math.nan, 2.0, 1.0])).isnan()
    assert f(torch.tensor([3e38, 3e38, 1.0])).item() == math.inf
    y = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: f(v * v, 1), y)
    assert torch.autograd.gradgradcheck(lambda v: f(v * v, 1), y)
    assert torch.allclose(torch.func.vmap(f)(x), x.sum((1, 2)), rtol=1e-13)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x, 1), f(x, 1))


@pytest.mark.parametrize("function", [kahan_sum, pairwise_sum])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_real_and_dense_is_refused_by_name(function: object, kind: str) -> None:
    with pytest.raises(UsageError, match=kind):
        function(REFUSED[kind]())


def test_there_is_no_loop_over_elements() -> None:
    x = torch.randn(2_000_000)
    start = time.perf_counter()
    kahan_sum(x)
    assert time.perf_counter() - start < 2.0  # a Python loop takes a minute; the compensated tree some 50 ms
