"""Norms, attention and the transformer block: torch's results and state dicts, and answers where torch has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from latent_drift.errors import UsageError
from latent_drift.stability import RMSNorm, StableAttention, StableLayerNorm, StableTransformerBlock
from tests.numerics.test_elementary import DTYPES


@DTYPES
@pytest.mark.parametrize(("ours", "theirs"), [(StableLayerNorm, nn.LayerNorm), (RMSNorm, nn.RMSNorm)])
def test_norms_have_torchs_state_dict_and_results(ours: type, theirs: type, dtype: torch.dtype) -> None:
    a, b = ours((4, 8)), theirs((4, 8), eps=1e-5) if theirs is nn.LayerNorm else theirs((4, 8))
    with torch.no_grad():
        for p in b.parameters():
            p.normal_()
    assert a.state_dict().keys() == b.state_dict().keys()
    a.load_state_dict(b.state_dict())
    x = (torch.randn(3, 4, 8) * 5).to(dtype)
    result = a(x)
    assert result.dtype == dtype
    exact = b.double()(x.double())
    assert torch.allclose(
        result.double(),
        exact,
        rtol=8 * torch.finfo(dtype).eps,
        atol=8 * torch.finfo(torch.promote_types(dtype, torch.bfloat16)).eps if dtype.itemsize == 2 else 1e-5,
    )


def _audited_layer_norm(x: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps)


def test_layer_norm_survives_float16_beyond_256_and_bfloat16_beyond_1e19() -> None:
    x = torch.randn(2, 64).half() * 600
    assert (_audited_layer_norm(x) == 0).all()  # negative control
    assert StableLayerNorm(64)(x).std().item() == pytest.approx(1, abs=0.02)
    small = torch.randn(2, 64) * 1e-3
    assert _audited_layer_norm(small).std() < 0.2  # negative control: the epsilon swallows the signal
    assert StableLayerNorm(64, eps=1e-12)(small).std().item() == pytest.approx(1, abs=0.02)
    for norm, torchs in ((StableLayerNorm(64), nn.LayerNorm(64)), (RMSNorm(64), nn.RMSNorm(64))):
        huge = (torch.randn(2, 64) * 1e30).requires_grad_()
        assert not (torchs(huge).std() > 0.9)  # negative control: 0 or NaN
        value = norm(huge)
        assert value.detach().std().item() == pytest.approx(1, abs=0.05)
        assert torch.autograd.grad(value.sum(), huge)[0].isfinite().all()


def test_norms_under_autocast_and_with_mixed_dtypes() -> None:
    norm = StableLayerNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, 8, dtype=torch.bfloat16) * 1000).dtype == torch.bfloat16
    assert norm(torch.randn(2, 8).half()).dtype == torch.float16
    assert torch.autograd.gradcheck(StableLayerNorm(4).double(), torch.randn(2, 4, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradgradcheck(RMSNorm(4).double(), torch.randn(2, 4, dtype=torch.float64, requires_grad=True))
    torch._dynamo.reset()
    x = torch.randn(2, 8)
    assert torch.allclose(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), norm(x))


def test_attention_loads_torchs_weights_and_agrees() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    ours = StableAttention(16, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 16)
    assert torch.allclose(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-6)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = theirs(x, x, x, attn_mask=~causal, need_weights=False)[0]
    assert torch.allclose(ours(x, causal), expected, atol=1e-6)
    assert torch.allclose(ours(x, is_causal=True), expected, atol=1e-6)
    additive = torch.zeros(5, 5).masked_fill(~causal, -math.inf)
    assert torch.allclose(ours(x, additive), expected, atol=1e-6)
    assert torch.allclose(ours(x, causal.long()), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["boolean", "additive", "-1e9"])
def test_queries_without_a_key_give_zero_with_zero_gradient(dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    attention = StableAttention(8, 2).to(dtype)
    nn.init.ones_(attention.out_proj.bias)
    keys = torch.tensor([[[True, True, False]], [[False, False, False]]])  # the second sequence is all padding
    mask = {"boolean": keys, "additive": torch.where(keys, 0.0, -math.inf), "-1e9": torch.where(keys, 0.0, -1e9).to(torch.float32)}[kind]
    if kind == "-1e9" and dtype != torch.float16:
        mask = torch.where(keys, 0.0, -math.inf)
    x = torch.randn(2, 3, 8, dtype=dtype, requires_grad=True)
    scores = torch.zeros(1, 3, dtype=dtype)
    assert torch.softmax(scores.masked_fill(~keys[1], -math.inf), -1).isnan().all()  # negative control
    value = attention(x, mask)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert (value[1] == 0).all()
    assert (gradient[1] == 0).all()
    assert value[0].isfinite().all()
    assert (value[0] != 0).all()


def test_causal_and_padding_masks_that_empty_a_row_together() -> None:
    attention = StableAttention(8, 2)
    x = torch.randn(1, 3, 8, requires_grad=True)
    padding = torch.tensor([[[False, True, True]]])  # the first position is padding: causally, query 0 sees nothing
    value = attention(x, padding, is_causal=True)
    assert (value[0, 0] == 0).all()
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), x)[0].isfinite().all()


def test_attention_refuses_impossible_shapes() -> None:
    with pytest.raises(UsageError, match="n_heads must divide"):
        StableAttention(2, 4)  # the original's silent zero attention
    with pytest.raises(UsageError, match="x must be"):
        StableAttention(8, 2)(torch.randn(3, 8))
    with pytest.raises(UsageError, match="mask must broadcast"):
        StableAttention(8, 2)(torch.randn(1, 3, 8), torch.ones(4, 4, dtype=torch.bool))
    torch._dynamo.reset()
    x, attention = torch.randn(1, 3, 8), StableAttention(8, 2)
    assert torch.allclose(torch.compile(attention, fullgraph=True, backend="eager")(x, is_causal=True), attention(x, is_causal=True))


def test_transformer_variance_does_not_depend_on_depth() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 64)
    variances = {}
    for depth in (4, 64):
        scaled = nn.Sequential(*[StableTransformerBlock(64, 4, depth=depth) for _ in range(depth)])
        plain = nn.Sequential(*[StableTransformerBlock(64, 4) for _ in range(depth)])
        with torch.no_grad():
            variances[depth] = (scaled(x).var().item(), plain(x).var().item())
    assert variances[64][1] > 3 * variances[4][1]  # negative control: unscaled branches add up
    assert variances[64][0] == pytest.approx(variances[4][0], rel=0.1)
    block = StableTransformerBlock(16, 4)
    assert [n for n, _ in block.named_children()][:4] == ["norm1", "attn", "norm2", "ffn"]
