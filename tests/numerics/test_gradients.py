"""Clipping against torch's own on finite gradients, and against what torch's own does to one bad gradient."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from latent_drift.errors import UsageError
from latent_drift.numerics.gradients import (
    GradientHistory,
    clip_adaptively_,
    clip_by_global_norm_,
    clip_by_value_,
    global_norm,
    gradients_of,
    zero_nonfinite_,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_global_norm_agrees_with_float64(dtype, norm_type):
    torch.manual_seed(0)
    gradients = [torch.randn(7, 5).to(dtype), torch.randn(11).to(dtype), torch.randn(()).to(dtype)]
    exact = torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in gradients]), norm_type).item()
    rtol = 1e-12 if dtype is torch.float64 else 2e-6
    assert global_norm(gradients, norm_type) == pytest.approx(exact, rel=rtol)


def test_finite_gradients_have_a_finite_norm_although_their_squares_overflow():
    gradients = [torch.full((4,), 1e30), torch.full((3,), 1e-30)]
    assert math.isinf(nn.utils.get_total_norm(gradients).item()), "negative control"
    assert global_norm(gradients) == pytest.approx(2e30)
    half = [torch.full((100,), 60_000.0, dtype=torch.float16), torch.ones(2, dtype=torch.float16)]
    assert global_norm(half) == pytest.approx(600_000.0, rel=1e-3)


def test_tiny_gradients_have_their_norm_although_their_squares_underflow():
    gradients = [torch.full((4,), 1e-30), torch.zeros(3)]
    assert nn.utils.get_total_norm(gradients).item() == 0.0, "negative control"
    assert global_norm(gradients) == pytest.approx(2e-30)
    assert global_norm([torch.zeros(2), torch.zeros(3)]) == 0.0


def test_clipping_is_bitwise_torchs_on_ordinary_gradients():
    torch.manual_seed(1)
    gradients = [torch.randn(50) * 3, torch.randn(4, 4)]
    ours, torchs = with_gradients(*gradients), with_gradients(*gradients)
    outcome = clip_by_global_norm_(gradients_of(ours), 1.0)
    nn.utils.clip_grad_norm_(torchs, 1.0)
    assert outcome.clipped
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0)
    assert global_norm(gradients_of(ours)) == pytest.approx(outcome.norm_after, rel=1e-5)


def test_a_small_norm_is_left_bitwise_alone():
    parameters = with_gradients(torch.full((10,), 1e-3))
    before = parameters[0].grad.clone()
    assert not clip_by_global_norm_(gradients_of(parameters), 1.0).clipped
    assert torch.equal(parameters[0].grad, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_gradient_does_not_spoil_the_others(bad):
    good = torch.tensor([3.0, 4.0])
    torchs = with_gradients(good, torch.tensor([1.0, bad]))
    nn.utils.clip_grad_norm_(torchs, 1.0)
    assert not torch.equal(torchs[0].grad, good), "negative control: torch's clipping zeroes or poisons the good gradient"
    ours = with_gradients(good, torch.tensor([1.0, bad]))
    outcome = clip_by_global_norm_(gradients_of(ours), 1.0)
    assert not outcome.finite
    assert not outcome.clipped
    assert torch.equal(ours[0].grad, good)
    assert zero_nonfinite_(gradients_of(ours)) == 1
    assert torch.equal(ours[1].grad, torch.tensor([1.0, 0.0]))


def test_huge_norms_do_not_flush_the_gradient_to_zero():
    parameters = with_gradients(torch.tensor([3e38, 1e38]), torch.tensor([2e38]))
    clip_by_global_norm_(gradients_of(parameters), 1.0)
    assert global_norm(gradients_of(parameters)) == pytest.approx(1.0, rel=1e-4)


def test_a_generator_is_read_once_and_really_clips():
    parameters = with_gradients(torch.full((4,), 10.0))
    outcome = clip_by_global_norm_(gradients_of(p for p in parameters), 1.0)
    assert outcome.clipped
    assert parameters[0].grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_sparse_complex_and_mixed_dtypes():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3])).sum().backward()
    complex_gradient = torch.tensor([3 + 4j])
    gradients = [embedding.weight.grad, complex_gradient, torch.ones(2, dtype=torch.float16), torch.ones(1, dtype=torch.float64)]
    exact = math.sqrt(4 + 25 + 2 + 1)
    assert global_norm(gradients) == pytest.approx(exact)
    clip_by_global_norm_(gradients, 1.0)
    assert global_norm(gradients) == pytest.approx(1.0, rel=1e-3)


def test_clip_by_value_bounds_elements_and_refuses_to_touch_nan():
    parameters = with_gradients(torch.tensor([5.0, -7.0, 0.5]))
    assert clip_by_value_(gradients_of(parameters), 1.0).clipped
    assert parameters[0].grad.tolist() == [1.0, -1.0, 0.5]
    bad = with_gradients(torch.tensor([math.nan, 9.0]))
    assert not clip_by_value_(gradients_of(bad), 1.0).clipped
    assert bad[0].grad[1].item() == 9.0


def test_adaptive_clipping_follows_the_papers_equation():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    weight.grad = torch.tensor([[30.0, 40.0], [1.0, 0.0]])
    clip_adaptively_([weight], clipping=0.1, floor=1e-3)
    # row 0: |w| = 5, so |g| <= 0.5 in the direction (0.6, 0.8); row 1: |w| counts as 1e-3, so |g| <= 1e-4
    torch.testing.assert_close(weight.grad, torch.tensor([[0.3, 0.4], [1e-4, 0.0]]))


def test_history_keeps_nan_out_and_matches_numpy():
    history = GradientHistory(100)
    norms = np.random.default_rng(0).exponential(size=60).tolist()
    for norm in norms:
        history.record(norm)
    history.record(math.nan)
    history.record(math.inf)
    assert len(history) == 60
    for q in (0.0, 37.5, 95.0, 100.0):
        assert history.percentile(q) == pytest.approx(float(np.percentile(norms, q)))
    assert history.zscore_threshold(3.0) == pytest.approx(float(np.mean(norms) + 3 * np.std(norms, ddof=1)))
    copy = GradientHistory(100)
    copy.load_state_dict(history.state_dict())
    assert copy.norms == history.norms


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_thresholds_must_be_positive(value):
    with pytest.raises(UsageError, match="positive"):
        clip_by_global_norm_([torch.ones(2)], value)
    with pytest.raises(UsageError, match="positive"):
        clip_by_value_([torch.ones(2)], value)


@pytest.mark.parametrize(("tensors", "elements"), [(1, 5), (3, 7), (50, 64), (53, 1400), (16, 2**13), (16, 2**13 + 1), (40, 2**14), (2, 2**17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_is_exact_to_a_few_parts_in_1e5_however_the_tensors_are_joined(tensors, elements, dtype):
    generator = torch.Generator().manual_seed(tensors)
    for make in (
        lambda: torch.randn(elements, generator=generator),
        lambda: torch.full((elements,), 0.1),
        lambda: torch.rand(elements, generator=generator) ** 5,
    ):
        gradients = [make().to(dtype) for _ in range(tensors)]
        exact = math.sqrt(math.fsum(float(g.double().square().sum()) for g in gradients))
        assert global_norm(gradients) == pytest.approx(exact, rel=6e-5 if dtype is torch.float32 else 1e-12)


@pytest.mark.parametrize("count", [1, 2, 9, 60])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30, 1e-30])
def test_a_norm_says_what_is_there_where_squares_leave_the_range(count, value):
    gradients = [torch.zeros(5) for _ in range(count)]
    gradients[-1][2] = value
    squares = sum(float((g * g).sum()) for g in gradients)
    assert squares in (0.0, math.inf) or math.isnan(squares)  # negative control: the naive norm
    found = global_norm(gradients)
    assert math.isnan(found) if math.isnan(value) else found == pytest.approx(abs(value))
