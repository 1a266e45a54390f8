import math

import pytest
import torch

from latent_drift.numerics.finite import is_finite, largest_magnitude, nonfinite_positions, summarise


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_anywhere_is_seen(dtype, bad):
    x = torch.ones(3, 50, dtype=dtype)
    assert is_finite(x)
    for position in ((0, 0), (1, 25), (2, 49)):
        y = x.clone()
        y[position] = bad
        assert not is_finite(y)
        assert not is_finite(y.t())


def test_largest_finite_numbers_are_finite_although_their_sum_is_not():
    x = torch.full((1000,), torch.finfo(torch.float32).max)
    assert torch.isinf(x.sum()), "negative control: a check by sum would be wrong"
    assert is_finite(x)
    assert largest_magnitude(x).item() == torch.finfo(torch.float32).max


def test_sparse_integer_empty_and_bool_tensors():
    assert is_finite(torch.empty(0))
    assert is_finite(torch.tensor([1, 2]))
    assert is_finite(torch.tensor([True]))
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, math.nan], (4,), check_invariants=True)
    assert not is_finite(sparse)
    assert is_finite(torch.sparse_coo_tensor([[0, 2]], [1.0, 2.0], (4,), check_invariants=True))


def test_summary_counts_each_kind_and_ranges_over_the_finite():
    x = torch.tensor([1.0, -3.0, math.nan, math.inf, -math.inf, -math.inf])
    summary = summarise(x)
    assert (summary.nan, summary.posinf, summary.neginf, summary.nonfinite) == (1, 1, 2, 4)
    assert (summary.minimum, summary.maximum, summary.mean) == (-3.0, 1.0, -1.0)
    assert "float32[6]" in str(summary)
    assert "1 NaN, 1 +inf, 2 -inf of 6" in str(summary)


def test_summary_of_nothing_finite():
    summary = summarise(torch.full((2,), math.nan))
    assert summary.minimum is None
    assert "no finite element" in str(summary)


def test_positions_of_the_bad_tensors():
    assert nonfinite_positions([torch.ones(2), torch.tensor(math.inf), torch.zeros(3), torch.tensor([0.0, math.nan])]) == [1, 3]
