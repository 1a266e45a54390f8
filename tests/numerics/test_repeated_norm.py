"""The norm of the same gradients, step after step: right whatever happens to the list, and finite if and only if every element is."""

from __future__ import annotations

import math

import pytest
import torch

from latent_drift.numerics.gradients import global_norm
from latent_drift.numerics.repeated_norm import RepeatedNorm

SHAPES = [(8, 8)] * 9 + [(8,)] * 10 + [(3, 5, 2), (), (1,), (7, 8), ()]


def _gradients(shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def _reference(gradients):
    return math.sqrt(math.fsum(float(v) ** 2 for g in gradients for v in g.double().reshape(-1).tolist()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_is_the_norm_of_all_elements_step_after_step(dtype):
    norm = RepeatedNorm()
    for seed in range(3):
        gradients = _gradients(dtype=dtype, seed=seed)
        assert norm(gradients) == pytest.approx(_reference(gradients), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_one_bad_element_anywhere_shows(index, bad):
    norm = RepeatedNorm()
    gradients = _gradients()
    assert math.isfinite(norm(gradients))
    gradients[index].view(-1)[-1] = bad
    assert math.isnan(norm(gradients)) if math.isnan(bad) else norm(gradients) == math.inf


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_squares_out_of_range_are_no_bad_elements(size):
    gradients = [g * size for g in _gradients()]
    squares = sum(float(g.pow(2).sum()) for g in gradients)
    assert not 0.0 < squares < math.inf, "the naive form answers here as well"
    assert RepeatedNorm()(gradients) == pytest.approx(_reference(gradients), rel=1e-5)


def _other_lists():
    yield "shapes", _gradients([(5, 3)] * 9 + [(8,)] * 10 + [(3, 5, 2), (), (1,), (7, 8), ()])
    yield "order", list(reversed(_gradients()))
    yield "length", _gradients()[:7]
    yield "one", _gradients()[:1]
    yield "none", []
    yield "dtype", _gradients(dtype=torch.float64)
    yield "half", _gradients(dtype=torch.float16)
    yield "one of another dtype", [*_gradients()[:-1], torch.tensor(3.0, dtype=torch.float64)]
    yield "complex", [torch.complex(g, g) for g in _gradients()]
    yield "sparse", [_gradients()[0].to_sparse(), *_gradients()[1:]]
    yield "large", [torch.randn(512, 512), *_gradients()[1:]]
    yield "channels last", [g.to(memory_format=torch.channels_last) for g in _gradients([(4, 3, 5, 5)] * 24)]
    yield "transposed", [g.t() if g.dim() == 2 else g for g in _gradients()]
    yield "not contiguous", [torch.randn(8, 16)[:, ::2] if g.shape == (8, 8) else g for g in _gradients()]


@pytest.mark.parametrize(("name", "gradients"), list(_other_lists()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_list_that_changed_gives_the_right_number_and_so_does_the_first_again(name, gradients):
    norm, first = RepeatedNorm(), _gradients()
    for each in (first, gradients, gradients, first):
        assert norm(each) == pytest.approx(global_norm(each), rel=1e-5), name


def test_many_equal_elements_keep_their_digits():
    gradients = [torch.full((64, 64), 0.1) for _ in range(20)] + [torch.full((64,), 0.1) for _ in range(33)]
    assert RepeatedNorm()(gradients) == pytest.approx(_reference(gradients), rel=1e-4)
