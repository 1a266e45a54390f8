"""Sampling: from the learned prior, the same tokens with and without kept keys and values, edges and errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latent_drift.errors import NumericalError, UsageError
from latent_drift.models.incremental import IncrementalBlock, IncrementalEncoder, IncrementalField, IncrementalObservation
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.prior import PriorODE
from latent_drift.models.sample_ode import sample_sequences_ode
from tests.benchmarks.ode_legacy import naive_samples

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def small(legacy_compat: bool = False) -> DeterministicLatentODE:
    torch.manual_seed(0)
    return DeterministicLatentODE(30, 8, 16, 12, 4, legacy_compat=legacy_compat)


@pytest.mark.parametrize("legacy_compat", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_same_tokens_with_and_without_kept_keys_and_values(legacy_compat: bool, seed: int) -> None:
    model = small(legacy_compat)
    torch.manual_seed(seed)
    kept = sample_sequences_ode(model, 67, 8, "cpu")
    torch.manual_seed(seed)
    plain = sample_sequences_ode(model, 67, 8, "cpu", cached=False)
    for a, b in zip(kept, plain, strict=True):
        assert a.shape == (8, 67)
        assert a.dtype == torch.long
        assert torch.equal(a, b)
    torch.manual_seed(seed + 10)
    assert not torch.equal(sample_sequences_ode(model, 67, 8)[1], kept[1])


def test_published_sampling_draws_as_a_full_pass_a_token_does() -> None:
    model = small(legacy_compat=True)
    torch.manual_seed(3)
    expected = naive_samples(model, 20, 5)
    torch.manual_seed(3)
    for ours, theirs in zip(sample_sequences_ode(model, 20, 5, "cpu"), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("legacy_compat", [False, True])
def test_starts_come_from_the_learned_prior(legacy_compat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_drift.models.sample_ode as module

    starts: list[Tensor] = []
    name = "_draw_tokens_in_order" if legacy_compat else "_draw_tokens"
    draw = getattr(module, name)

    def spy(walk: object, z0: Tensor, seq_len: int) -> Tensor:
        starts.append(z0.clone())
        return draw(walk, z0, seq_len)

    monkeypatch.setattr(module, name, spy)
    model = small(legacy_compat)
    with torch.no_grad():
        model.p_init_distr.m.fill_(7.0)
        model.p_init_distr.log_s.fill_(-2.0)
    torch.manual_seed(0)
    sample_sequences_ode(model, 3, 400)
    z0 = torch.cat(starts)
    shared, own = z0[:400], z0[400:]
    assert (shared == shared[:1]).all()
    assert len(own.unique(dim=0)) == 400
    mean, std = (0.0, 1.0) if legacy_compat else (7.0, 0.1353)  # N(0, I) is the negative control
    assert own.mean().item() == pytest.approx(mean, abs=5 * std / 3200**0.5)
    assert own.std().item() == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("legacy_compat", [False, True])
def test_the_model_is_left_as_it_was(legacy_compat: bool) -> None:
    model = small(legacy_compat).train()
    before = {name: v.clone() for name, v in model.state_dict().items()}
    shared, own = sample_sequences_ode(model, 5, 2)
    assert model.training
    assert model.p_observe.training
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert not shared.requires_grad
    assert not own.requires_grad
    assert not sample_sequences_ode(model.eval(), 5, 2)[0].requires_grad
    assert not model.training


@pytest.mark.parametrize("legacy_compat", [False, True])
@pytest.mark.parametrize(("seq_len", "n_samples"), [(1, 3), (2, 1), (4, 0), (130, 1)])
def test_lengths_and_numbers_at_the_edge(legacy_compat: bool, seq_len: int, n_samples: int) -> None:
    for tokens in sample_sequences_ode(small(legacy_compat), seq_len, n_samples):
        assert tokens.shape == (n_samples, seq_len)
        assert ((tokens >= 0) & (tokens < 30)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("legacy_compat", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_every_dtype(dtype: torch.dtype, legacy_compat: bool, cached: bool) -> None:
    shared, own = sample_sequences_ode(small(legacy_compat).to(dtype), 9, 2, cached=cached)
    assert shared.shape == own.shape == (2, 9)


def test_tokens_follow_the_model_s_distribution() -> None:
    model = small()
    torch.manual_seed(0)
    with torch.no_grad():
        model.p_init_distr.log_s.fill_(-20.0)  # one z_0 for all
    first = sample_sequences_ode(model, 1, 20_000)[1][:, 0]
    z0 = model.p_init_distr.m.expand(1, 1, -1)
    expected = model.decode_logits(z0, torch.zeros(1, 1, dtype=torch.long))[0, 0].softmax(-1).detach()
    observed = torch.bincount(first, minlength=30) / 20_000
    assert (observed - expected).abs().max() < 5 * (expected.max().item() / 20_000) ** 0.5


def test_refusals() -> None:
    model = small()
    for arguments, named in (((0, 2), "seq_len"), ((5, -1), "n_samples"), ((5.0, 2), "seq_len")):
        with pytest.raises(UsageError, match=named):
            sample_sequences_ode(model, *arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        model.p_observe.proj_out.bias.fill_(float("nan"))
    with pytest.raises(NumericalError, match="position 0"):
        sample_sequences_ode(model, 5, 2)


# --- the parts that keep keys and values ---------------------------------------------------------------------------


@torch.no_grad()
def test_incremental_parts_equal_the_full_pass_in_float64() -> None:
    model = small().double()
    tokens = torch.randint(0, 30, (3, 11))
    z = model.encode(tokens)
    logits = model.decode_logits(z, tokens)
    encoder, observation = IncrementalEncoder(model.encoder, 3, 11), IncrementalObservation(model.p_observe, 3, 11)
    block = IncrementalBlock(model.p_observe.block, 3, 11)
    x = torch.randn(3, 11, 16, dtype=torch.float64)
    expected = model.p_observe.block(x)
    for t in range(11):
        torch.testing.assert_close(encoder.step(tokens[:, t], t), z[:, t])
        torch.testing.assert_close(observation.step(z[:, t], tokens[:, t - 1] if t else None, t), logits[:, t])
        torch.testing.assert_close(block.step(x[:, t], t), expected[:, t])


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 5, 12])
def test_incremental_field_is_the_field(depth: int) -> None:
    field = PriorODE(4, 8, depth).double()
    z = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(IncrementalField(field)(z, 0.3), field(z, torch.tensor(0.3)))
