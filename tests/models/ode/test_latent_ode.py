"""The latent ODE model: its contract, and each finding of the audit with the published form failing beside it."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.models.latent_ode import DeterministicLatentODE, Predictor
from latent_drift.models.sequences import synthetic_sequences
from tests.benchmarks.ode_legacy import NaiveSlicing, naive_loss

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAIN_SIZES = {"vocab_size": 30, "latent_size": 64, "hidden_size": 128, "embed_size": 64}


def small(legacy_compat: bool = False, num_slices: int = 16) -> DeterministicLatentODE:
    torch.manual_seed(0)
    return DeterministicLatentODE(30, 8, 16, 12, num_slices, legacy_compat=legacy_compat)


def batch(size: int = 4, length: int = 67) -> Tensor:
    return synthetic_sequences(size, torch.Generator().manual_seed(1)).long()[:, :length]


# --- the contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy_compat", [False, True])
def test_state_dict_has_the_published_keys_and_shapes_in_order(legacy_compat: bool) -> None:
    lines = (Path(__file__).parent / "fixtures" / "state_dict.txt").read_text(encoding="utf-8").splitlines()
    published = [(name, ast.literal_eval(shape)) for name, shape in (line.split(" ", 1) for line in lines)]
    model = DeterministicLatentODE(**MAIN_SIZES, num_slices=64, legacy_compat=legacy_compat)
    assert sorted((name, tuple(v.shape)) for name, v in model.state_dict().items()) == sorted(published)
    assert len(published) == 107
    assert sum(p.numel() for p in model.parameters()) == 637_278


def test_weights_load_strictly_either_way() -> None:
    published, corrected = small(legacy_compat=True), small()
    state = {name: torch.randn_like(v) if v.is_floating_point() else v + 7 for name, v in published.state_dict().items()}
    for model in (published, corrected):
        assert str(model.load_state_dict(copy.deepcopy(state), strict=True)) == "<All keys matched successfully>"
        assert model.latent_test.global_step.item() == 7


@pytest.mark.parametrize("seed", [0, 1])
def test_published_loss_and_gradients_to_rounding(seed: int) -> None:
    torch.manual_seed(seed)
    model = DeterministicLatentODE(30, 8, 16, 12, 16, legacy_compat=True)
    tokens, weights = batch(), (1.0, 0.05, 1.0)
    slicing = NaiveSlicing(16)
    slicing.global_step.fill_(5)
    model.latent_test.global_step.fill_(5)
    expected = naive_loss(model, slicing, tokens, weights)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss, stats = model(tokens, weights)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(stats) == {"recon", "latent_ep", "ode_reg"}
    assert model.latent_test.global_step.item() == slicing.global_step.item() == 7
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert parameter.grad is not None
            assert (parameter.grad - gradients[name]).norm() <= 2e-4 * gradients[name].norm() + 1e-5, name
        else:
            assert parameter.grad is None, name  # the prior and the predictor were never used


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    model = small().eval()
    tokens = batch()
    recon, latent_ep, ode_reg = model.loss_components(tokens)
    loss, stats = model(tokens, (2.0, 3.0, 5.0))
    assert loss.item() == pytest.approx((2 * recon + 3 * latent_ep + 5 * ode_reg).item(), rel=1e-6)
    assert stats["recon"].item() == recon.item()
    assert not any(value.requires_grad for value in stats.values())
    default, _ = model(tokens)
    assert default.item() == pytest.approx((recon + 0.1 * latent_ep + ode_reg).item(), rel=1e-6)


def test_shapes_of_every_method() -> None:
    model = small()
    tokens = batch(3)
    z = model.encode(tokens)
    assert z.shape == (3, 67, 8)
    assert model.decode_logits(z, tokens).shape == (3, 67, 30)
    loss, z_pred = model.ode_matching_loss(z)
    assert loss.shape == ()
    assert z_pred.shape == (3, 66, 8)
    assert Predictor(8, 16)(z).shape == z.shape


def test_at_67_tokens_the_ode_loss_is_the_published_one() -> None:
    model, published = small(), small(legacy_compat=True)
    z = torch.randn(2, 67, 8)
    times = torch.arange(66).view(1, 66, 1) / 66
    increment = model.p_ode(z[:, :-1], times) / 66
    expected = (increment - (z[:, 1:] - z[:, :-1])).abs().mean()
    for each in (model, published):
        loss, z_pred = each.ode_matching_loss(z)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(z_pred, z[:, :-1] + increment)


# --- what the audit found ------------------------------------------------------------------------------------------


def test_an_error_of_the_vector_field_weighs_the_same_at_every_length() -> None:
    def weight(model: DeterministicLatentODE, length: int) -> float:
        """The loss of a path along which the field is wrong by 1 everywhere."""
        with torch.no_grad():
            for parameter in model.p_ode.parameters():
                parameter.zero_()
        path = torch.linspace(0, 1, length).view(1, length, 1).expand(1, length, 8)
        return float(model.ode_matching_loss(path)[0].item())

    published = [weight(small(legacy_compat=True), length) for length in (5, 67, 1000)]
    corrected = [weight(small(), length) for length in (5, 67, 1000)]
    assert published[0] / published[2] > 200  # the negative control
    assert corrected == pytest.approx([published[1]] * 3, rel=1e-4)


def test_reconstruction_reaches_every_latent() -> None:
    def gradient(model: DeterministicLatentODE) -> Tensor:
        z = torch.randn(2, 67, 8, requires_grad=True)
        _, z_pred = model.ode_matching_loss(z)
        path = torch.cat([z[:, :1], z_pred], dim=1)
        logits = model.decode_logits(path, batch(2))
        (g,) = torch.autograd.grad(logits.square().sum(), z)
        return g.norm(dim=(0, 2))

    published, corrected = gradient(small(legacy_compat=True)), gradient(small())
    # the negative control: there, only through the field's small increment
    assert (corrected[1:-1] > 5 * published[1:-1]).all()


def test_normality_at_the_start_does_not_drown_the_reconstruction() -> None:
    tokens = batch(32)
    for legacy_compat in (True, False):
        torch.manual_seed(0)
        model = DeterministicLatentODE(**MAIN_SIZES, num_slices=16, legacy_compat=legacy_compat)
        recon, latent_ep, _ = model.loss_components(tokens)
        share = 0.05 * latent_ep.item() / recon.item()
        assert (share > 10) if legacy_compat else (share < 0.5)


def test_published_statistic_has_the_size_that_the_audit_measured() -> None:
    """0.05 of it was 371 at initialisation, at batch 128, beside a reconstruction of 2.8: the mean of two statistics weighted with phi."""

    def measured(weighted: bool) -> list[float]:
        values = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = DeterministicLatentODE(**MAIN_SIZES, num_slices=16, legacy_compat=True)
            test = model.latent_test.univariate_test
            if not weighted:
                test.weights.div_(test.phi)
            with torch.no_grad():
                recon, latent_reg, _ = model.loss_components(batch(128))
            assert 2.3 < recon < 4.5
            values.append(0.05 * latent_reg.item())
        return values

    assert all(250 < value < 500 for value in measured(weighted=True))
    assert all(value > 800 for value in measured(weighted=False))  # the control: neither this reading nor a sum of two gives 371


def test_normality_weighs_the_same_at_every_batch() -> None:
    model = small().eval()
    tokens = batch(4)
    few, many = (model.loss_components(t)[1].item() for t in (tokens, tokens.repeat(8, 1)))
    assert few == pytest.approx(many, rel=1e-4)


def test_no_forecast_knows_what_it_forecasts() -> None:
    """Logits at t are the same whatever tokens come from t on; the published encoder told z_0 the last token."""
    tokens = batch(1, 12)
    changed = tokens.clone()
    changed[0, -1] = 9 if tokens[0, -1] != 9 else 10
    for legacy_compat in (True, False):
        model = small(legacy_compat)
        difference = (model.encode(tokens) - model.encode(changed))[0].abs().amax(-1)
        assert (difference[0] > 0).item() is legacy_compat

        def logits(some: Tensor, model: DeterministicLatentODE = model) -> Tensor:
            z = model.encode(some)
            path = torch.cat([z[:, :1], model.ode_matching_loss(z)[1]], dim=1)
            return model.decode_logits(path, some)[0]

        moved = (logits(tokens) - logits(changed)).abs().amax(-1)
        assert (moved > 0).any().item() is legacy_compat


def test_every_parameter_learns() -> None:
    for legacy_compat in (True, False):
        model = small(legacy_compat)
        model(batch())[0].backward()
        without = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        assert without == ({"p_init_distr", "predictor"} if legacy_compat else set())


def test_prior_of_z0_learns_where_z0_is() -> None:
    model = small()
    optimizer = torch.optim.Adam(model.p_init_distr.parameters(), lr=0.05)
    tokens = batch(32, 2)
    tokens[:, 0] = torch.randint(0, 30, (32,), generator=torch.Generator().manual_seed(0))  # so that z_0 varies
    for _ in range(120):
        optimizer.zero_grad()
        model(tokens)[0].backward()
        optimizer.step()
    z0 = model.encode(tokens)[:, 0]
    prior = model.p_init_distr()
    torch.testing.assert_close(prior.mean[0], z0.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(prior.stddev[0].log(), z0.std(0).log(), rtol=0, atol=0.3)


def test_what_is_fitted_beside_leaves_the_model_s_own_gradients_alone() -> None:
    model, tokens = small().eval(), batch()
    model(tokens, (1.0, 0.3, 1.0))[0].backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    recon, latent_ep, ode_reg = model.loss_components(tokens)
    (recon + 0.3 * latent_ep + ode_reg).backward()
    for name, parameter in model.named_parameters():
        if not name.startswith(("p_init_distr", "predictor")):
            torch.testing.assert_close(parameter.grad, together[name], msg=name)


def test_slices_advance_once_a_training_step_and_not_in_evaluation() -> None:
    for legacy_compat, expected in ((True, 4), (False, 1)):
        model, tokens = small(legacy_compat), batch()
        model.train()(tokens)
        model.eval()(tokens)
        assert model.latent_test.global_step.item() == expected


# --- degenerate input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy_compat", [False, True])
def test_empty_batch_has_a_loss_of_zero_with_a_graph(legacy_compat: bool) -> None:
    model = small(legacy_compat)
    loss, stats = model(torch.zeros(0, 67, dtype=torch.long))
    assert loss.item() == 0.0
    assert all(value.item() == 0.0 for value in stats.values())
    loss.backward()
    assert all(p.grad is None or not p.grad.isnan().any() for p in model.parameters())


@pytest.mark.parametrize("legacy_compat", [False, True])
@pytest.mark.parametrize(("size", "length"), [(1, 1), (3, 1), (1, 2), (1, 67), (2, 300)])
def test_short_long_and_single_sequences(legacy_compat: bool, size: int, length: int) -> None:
    model = small(legacy_compat)
    tokens = torch.randint(0, 30, (size, length))
    loss, stats = model(tokens)
    assert loss.isfinite()
    assert (stats["ode_reg"].item() == 0.0) is (length == 1)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_what_cannot_be_is_refused_by_name() -> None:
    model = small()
    for tokens, kind, named in (
        (torch.zeros(2, 0, dtype=torch.long), UsageError, "at least 1"),
        (torch.zeros(67, dtype=torch.long), UsageError, r"\(B, L\)"),
        (torch.zeros(2, 5), UsageError, "integers"),
        (torch.full((2, 5), 30), IndexError, "token 30"),
        (torch.full((2, 5), -1), IndexError, "token -1"),
    ):
        with pytest.raises(kind, match=named):
            model(tokens)
    with pytest.raises(UsageError, match="loss_weights"):
        model(batch(), (1.0, 0.1))
    for sizes, named in (((0, 8, 16, 8), "vocab_size"), ((30, 0, 16, 8), "latent_size"), ((30, 8, 3, 8), "head"), ((30, 8, 16, 0), "embed_size")):
        with pytest.raises(UsageError, match=named):
            DeterministicLatentODE(*sizes)
    with pytest.raises(UsageError, match="num_slices"):
        DeterministicLatentODE(30, 8, 16, 8, num_slices=0)


# --- dtypes and far latents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("legacy_compat", [False, True])
def test_weights_of_every_dtype(dtype: torch.dtype, legacy_compat: bool) -> None:
    reference, model = small(legacy_compat), small(legacy_compat).to(dtype)
    tokens = batch()
    loss, _ = model(tokens)
    expected, _ = reference(tokens)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(expected.item(), rel=40 * torch.finfo(dtype).eps + 1e-5)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    model, tokens = small(), batch()
    expected, _ = small()(tokens)
    with torch.autocast("cpu", dtype=dtype):
        loss, stats = model(tokens)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=40 * torch.finfo(dtype).eps)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(value.dtype == torch.float32 for value in stats.values())


@pytest.mark.parametrize("distance", [30.0, 1e3, 1e6])
def test_far_latents_stay_finite_and_come_back(distance: float) -> None:
    """One latent dimension after another is `distance` from the origin; only the normality term acts."""

    def remaining(legacy_compat: bool) -> float:
        model, tokens = small(legacy_compat, num_slices=64), batch()
        with torch.no_grad():
            model.encoder.proj.bias += distance
        loss, _ = model(tokens)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer = torch.optim.Adam([model.encoder.proj.bias], lr=distance / 20)
        for _ in range(40):
            optimizer.zero_grad()
            model.loss_components(tokens)[1].backward()
            optimizer.step()
        return float(model.encode(tokens).mean((0, 1)).norm().item() / (distance * 8**0.5))

    if distance >= 1e3:
        assert remaining(legacy_compat=True) > 0.5  # the negative control: no slope there, only noise
    assert remaining(legacy_compat=False) < 0.35
