"""Rows without a finite entry; every other row untouched."""

import math

import pytest
import torch
from torch import nn

import instrument
from instrument.guards.softmax import SoftmaxGuard

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INF = math.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spelling", SoftmaxGuard().spellings(), ids=lambda s: s.path)
@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 200, 50)], ids=str)
def test_empty_rows_give_zeros_and_others_are_bitwise_the_same(spelling, dtype, shape):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    x[1] = -INF
    x[2, ..., 1:] = -INF
    plain = getattr(spelling.owner, spelling.name)(x, -1)
    assert torch.isnan(plain[1]).all(), "negative control"
    with instrument.stable(profile="guard") as run:
        guarded = getattr(spelling.owner, spelling.name)(x, -1)
    assert torch.equal(guarded[1], torch.zeros_like(guarded[1]))
    assert torch.equal(guarded[0], plain[0])
    assert torch.equal(guarded[2], plain[2])
    assert [(e.code, e.count) for e in run.events] == [("NS401", 1)]


def test_gradient_of_an_empty_row_is_zero_and_of_the_others_bitwise_torchs():
    torch.manual_seed(0)
    scores = nn.Parameter(torch.randn(3, 5))
    mask = torch.tensor([[0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    weight = torch.randn(3, 5)

    def gradient():
        scores.grad = None
        (scores.masked_fill(mask, -INF).softmax(-1) * weight).sum().backward()
        return scores.grad

    plain = gradient()
    with instrument.stable(profile="guard"):
        guarded = gradient()
    assert torch.equal(guarded[1], torch.zeros(5))
    assert torch.equal(guarded[[0, 2]], plain[[0, 2]])


def test_uniform_and_leave():
    row = torch.full((1, 4), -INF)
    with instrument.stable(softmax={"empty_rows": "uniform"}):
        assert torch.equal(row.softmax(-1), torch.full((1, 4), 0.25))
    with instrument.stable(softmax={"empty_rows": "leave"}) as run:
        assert torch.isnan(row.softmax(-1)).all()
    assert [e.action for e in run.events] == ["observed"]


def test_nan_that_came_in_is_no_finding():
    with instrument.stable() as run:
        assert torch.isnan(torch.tensor([[math.nan, 1.0]]).softmax(-1)).all()
    assert run.events == ()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5)], ids=str)
def test_implicit_and_negative_dims(shape):
    x = torch.full(shape, -INF)
    with instrument.stable():
        for dim in range(-max(x.dim(), 1), max(x.dim(), 1)):
            assert torch.equal(x.softmax(dim), torch.zeros(shape))
            assert torch.equal(torch.softmax(x, dim=dim), torch.zeros(shape))


def test_dtype_argument_and_keyword_input():
    x = torch.full((2, 3), -INF, dtype=torch.float16)
    with instrument.stable():
        result = torch.softmax(input=x, dim=1, dtype=torch.float32)
    assert result.dtype is torch.float32
    assert torch.equal(result, torch.zeros(2, 3))


@pytest.mark.parametrize("training", [True, False])
def test_multi_head_attention_with_a_padded_out_sequence(training):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    x = torch.randn(2, 4, 8)
    padding = torch.tensor([[False] * 4, [True] * 4])
    plain, _ = attention(x, x, x, key_padding_mask=padding, need_weights=True)
    assert torch.isnan(plain[1]).any(), "negative control"
    with instrument.stable(profile="guard"):
        guarded, _ = attention(x, x, x, key_padding_mask=padding, need_weights=True)
    assert torch.isfinite(guarded).all()
    assert torch.equal(guarded[0], plain[0])
