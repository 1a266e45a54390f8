"""Attention, positions and blocks against plain formulas; refusals; dtypes."""

from __future__ import annotations

import math

import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.models.attention import AddPositionalEncoding, QKVAttention, TransformerBlock
from latent_drift.models.encoder import DeterministicEncoder, PosteriorEncoder
from latent_drift.models.observation import DiscreteObservation
from tests.benchmarks.ode_legacy import NaiveAttention

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize(("dim_in", "dim_qk", "dim_v", "nb_heads"), [(8, 4, 2, 4), (7, 3, 5, 2), (1, 1, 1, 1), (6, 2, 1, 6)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_formula(dim_in: int, dim_qk: int, dim_v: int, nb_heads: int, causal: bool) -> None:
    torch.manual_seed(0)
    attention = QKVAttention(dim_in, dim_qk, dim_v, nb_heads, causal).double()
    assert {n: tuple(p.shape) for n, p in attention.named_parameters()} == {
        "w_q": (nb_heads, dim_qk, dim_in),
        "w_k": (nb_heads, dim_qk, dim_in),
        "w_v": (nb_heads, dim_v, dim_in),
        "w_o": (dim_v * nb_heads, dim_in),
    }
    for length in (1, 5):
        x = torch.randn(2, length, dim_in, dtype=torch.float64)
        torch.testing.assert_close(attention(x), NaiveAttention(attention)(x))


def test_causal_attention_sees_no_later_position() -> None:
    torch.manual_seed(0)
    attention = QKVAttention(8, 4, 4, 2, causal=True)
    x = torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 4] += 1.0
    difference = (attention(x) - attention(changed)).abs().amax(-1)[0]
    assert (difference[:4] == 0).all()
    assert (difference[4:] > 0).all()


def test_a_causal_mask_needs_no_large_number() -> None:
    """Audit row M1: a causal row keeps its diagonal, so -inf is safe in every dtype; the -1e9 that was proposed is not."""
    torch.manual_seed(0)
    for dtype in FLOATS:
        attention = QKVAttention(8, 4, 4, 2, causal=True).to(dtype)
        x = (torch.randn(2, 5, 8) * 30).to(dtype).requires_grad_()
        y = attention(x)
        assert y.isfinite().all()
        y.float().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="overflow"):
        torch.zeros(2, dtype=torch.float16).masked_fill(torch.tensor([True, False]), -1e9)  # the negative control
    scores = torch.tensor([-2e9, 0.0]).masked_fill(torch.tensor([False, True]), -1e9)
    assert scores.softmax(-1)[1] == 1.0  # and in float32 a forbidden key wins over an allowed one


def test_softmax_of_large_scores_is_torchs() -> None:
    """Audit row S1: torch's softmax subtracts the maximum already."""
    scores = torch.tensor([[1e4, 1e4 - 1.0, -1e4]])
    naive = scores.exp() / scores.exp().sum(-1, keepdim=True)
    assert naive.isnan().any()  # the negative control
    torch.testing.assert_close(scores.softmax(-1).double(), scores.double().softmax(-1), rtol=1e-6, atol=0.0)
    torch.manual_seed(0)
    attention = QKVAttention(8, 4, 4, 2)
    x = torch.randn(1, 5, 8) * 1e3
    torch.testing.assert_close(attention(x).double(), NaiveAttention(attention.double())(x.double()), rtol=1e-3, atol=1e-2)


def test_heads_of_size_zero_are_refused_at_construction() -> None:
    assert 3 // 4 == 0  # the negative control: what the published sizes come to, and attention over nothing is 0
    empty = torch.nn.functional.scaled_dot_product_attention(torch.zeros(1, 4, 2, 1), torch.zeros(1, 4, 2, 1), torch.zeros(1, 4, 2, 0))
    assert empty.numel() == 0
    for build in (
        lambda: QKVAttention(3, 3 // 4, 3 // 4, 4),
        lambda: TransformerBlock(3, 1, 3, 4, False, 0.0),
        lambda: PosteriorEncoder(30, 8, 3),
        lambda: DeterministicEncoder(30, 8, 3, 4),
        lambda: DiscreteObservation(4, 30, 8, 3),
        lambda: DiscreteObservation(4, 30, 8, 8, nb_heads=9),
    ):
        with pytest.raises(UsageError, match="head"):
            build()
    with pytest.raises(UsageError, match="dropout"):
        QKVAttention(4, 2, 2, 2, dropout=1.0)
    with pytest.raises(UsageError, match="len_max"):
        AddPositionalEncoding(0)


@pytest.mark.parametrize("dim", [1, 7, 8])
def test_positions_are_the_published_sinusoids(dim: int) -> None:
    encoding = AddPositionalEncoding(1e5)(torch.zeros(1, 9, dim, dtype=torch.float64))[0]
    for t in range(9):
        for j in range(dim):
            expected = math.sin(t / 1e5 ** ((j - j % 2) / dim) + math.pi / 2 * (j % 2))
            assert encoding[t, j].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
def test_positions_in_every_dtype_are_the_rounded_float64_ones(dtype: torch.dtype) -> None:
    length = 5000
    naive = torch.arange(length, dtype=dtype)
    assert dtype in (torch.float32, torch.float64) or len(naive.unique()) < length  # the negative control: halves lose positions
    encoding = AddPositionalEncoding(1e5)(torch.zeros(1, length, 16, dtype=dtype))
    exact = AddPositionalEncoding(1e5)(torch.zeros(1, length, 16, dtype=torch.float64))
    assert encoding.dtype == dtype
    assert (encoding.double() - exact).abs().max() <= torch.finfo(dtype).eps * (1 if dtype != torch.float32 else 5000)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    attention = QKVAttention(8, 4, 4, 2, dropout=0.5)
    x = torch.randn(1, 6, 8)
    assert torch.equal(attention.eval()(x), attention(x))
    assert not torch.equal(attention.train()(x), attention(x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sizes", [(8, 16), (5, 7)])
def test_encoder_and_observation_in_every_dtype_and_odd_sizes(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    embed, hidden = sizes
    torch.manual_seed(0)
    encoder, observation = DeterministicEncoder(30, embed, hidden, 3), DiscreteObservation(3, 30, embed, hidden)
    tokens = torch.randint(0, 30, (2, 9))
    reference = observation.get_logits(encoder(tokens), tokens)
    encoder, observation = encoder.to(dtype), observation.to(dtype)
    logits = observation.get_logits(encoder(tokens), tokens)
    assert logits.dtype == dtype
    assert (logits.double() - reference.double()).abs().max() < 60 * torch.finfo(dtype).eps + 1e-5
    distribution = observation(encoder(tokens), tokens)
    assert distribution.logits.shape == (18, 30)
    assert distribution.log_prob(tokens.flatten()).isfinite().all()


def test_posterior_encoder_sees_everything_and_deterministic_encoder_the_past() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 30, (1, 9))
    changed = tokens.clone()
    changed[0, -1] = (tokens[0, -1] + 1) % 30
    for encoder, sees in (
        (PosteriorEncoder(30, 8, 16), True),
        (DeterministicEncoder(30, 8, 16, 4, legacy_compat=True), True),  # the negative control
        (DeterministicEncoder(30, 8, 16, 4), False),
    ):
        first = (encoder(tokens) - encoder(changed))[0, 0].abs().max().item()
        assert (first > 0) is sees


@pytest.mark.parametrize("width", [1, 3, 5])
def test_local_smoothing_keeps_constants_and_averages_neighbours(width: int) -> None:
    encoder = DeterministicEncoder(30, 8, 16, 4, smear_kernel_size=width, smear_sigma=2.0)
    kernel = torch.exp(-0.5 * ((torch.arange(width) - width // 2) / 2.0).square())
    torch.testing.assert_close(encoder.smear_kernel, kernel / kernel.sum())
    constant = torch.full((2, 6, 4), 3.0)
    torch.testing.assert_close(encoder.local_smooth(constant), constant)
    impulse = torch.zeros(1, 11, 1)
    impulse[0, 5] = 1.0
    expected = torch.zeros(11)
    expected[5 - width // 2 : 6 + width // 2] = encoder.smear_kernel
    torch.testing.assert_close(encoder.local_smooth(impulse)[0, :, 0], expected)
    assert encoder.local_smooth(torch.zeros(0, 6, 4)).shape == (0, 6, 4)
    with pytest.raises(UsageError, match="odd"):
        DeterministicEncoder(30, 8, 16, 4, smear_kernel_size=2)
    with pytest.raises(UsageError, match="sigma"):
        DeterministicEncoder(30, 8, 16, 4, smear_sigma=0.0)


def test_start_is_no_token_of_the_alphabet() -> None:
    """Behind the background character, "nothing yet" and a first `_` looked the same."""
    torch.manual_seed(0)
    z = torch.zeros(1, 2, 3)
    tokens = torch.tensor([[0, 5]])
    for legacy_compat in (True, False):
        observation = DiscreteObservation(3, 30, 8, 16, legacy_compat=legacy_compat)
        same = torch.equal(observation.start_embedding(1)[0, 0], observation.token_emb.weight[0])
        assert same is legacy_compat
        assert not any(torch.equal(observation.start_embedding(1)[0, 0], row) for row in observation.token_emb.weight) or legacy_compat
        logits = observation.get_logits(z, tokens)
        changed = observation.get_logits(z, torch.tensor([[0, 9]]))
        assert torch.equal(logits, changed)  # the last token is not seen by any position
        assert not torch.equal(logits[0, 1], observation.get_logits(z, torch.tensor([[4, 5]]))[0, 1])
    with pytest.raises(UsageError, match="agree"):
        observation.get_logits(z, torch.zeros(1, 3, dtype=torch.long))
