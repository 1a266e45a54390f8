import copy
import io
import math
import pathlib
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latent_drift.errors import UsageError
from latent_drift.models.distributed import batch_noise_like
from latent_drift.models.log_alphabet import NUM_LOG_CLASSES, log_vocab_size
from latent_drift.models.log_data import LogDataset
from latent_drift.models.raccoon import RaccoonLogClassifier
from tests.benchmarks.raccoon_legacy import PlainFlow, PlainLogClassifier

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
STATE = pathlib.Path(__file__).with_name("published_state.txt").read_text(encoding="utf-8")


def classifier(**kwargs):
    torch.manual_seed(0)
    return RaccoonLogClassifier(log_vocab_size, NUM_LOG_CLASSES, **kwargs)


@pytest.fixture
def batch():
    return LogDataset(16, seed=0).batch(range(16))


def all_finite(model):
    return all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict_and_parameters_are_the_published_ones(legacy):
    model = classifier(legacy_compat=legacy)
    published = {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, shape in re.findall(r"(\S+) \((.*?)\)", STATE)}
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == published
    assert list(model.state_dict())[:2] == ["z0_mean", "z0_logvar"]
    assert sum(p.numel() for p in model.parameters()) == 76_740
    assert sum(v.numel() for v in model.state_dict().values()) == 76_936


def test_sizes_may_be_any_integers():
    model = RaccoonLogClassifier(np.int64(40), torch.tensor(4), memory_size=np.int64(7))
    assert model.enc_mean.out_features == 32
    assert model.classifier[-1].out_features == 4


def test_attributes_of_the_contract():
    model = classifier(memory_size=7, adaptation_rate=0.5)
    assert model.memory.max_size == 7
    assert model.adaptation_rate == 0.5
    for name in ("encoder", "enc_mean", "enc_logvar", "dynamics", "flow", "classifier", "latent_test", "memory", "z0_mean", "z0_logvar"):
        assert hasattr(model, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 16])
def test_loss_is_finite_and_reaches_every_parameter_in_every_dtype(dtype, size):
    model = classifier().to(dtype)
    tokens, labels = LogDataset(size, seed=0).batch(range(size))
    loss, stats = model(tokens, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.shape == ()
    assert set(stats) == {"class_loss", "kl_loss", "ep_loss", "accuracy", "logits"}
    assert stats["logits"].shape == (size, 4)
    assert not stats["logits"].requires_grad
    torch.testing.assert_close(loss, stats["class_loss"] + 0.1 * stats["kl_loss"] + 0.01 * stats["ep_loss"])
    assert all_finite(model)
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        if dtype in (torch.float32, torch.float64) and not name.startswith("z0"):
            assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_agrees_with_float32_to_the_dtype(dtype, batch):
    model = classifier().eval()
    exact, _ = model(*batch)
    with torch.autocast("cpu", dtype=dtype):
        loss, _ = model(*batch)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) < 8 * torch.finfo(dtype).eps * exact.item()
    model.train()
    with torch.autocast("cpu", dtype=dtype):
        loss, _ = model(*batch)
    (loss * 1024).backward()
    assert all_finite(model)


@pytest.mark.parametrize("legacy", [False, True])
def test_empty_batch_is_exactly_zero_with_a_graph(legacy):
    model = classifier(legacy_compat=legacy)
    loss, stats = model(torch.zeros(0, 50, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0.0
    assert all(stats[k].item() == 0.0 for k in ("class_loss", "kl_loss", "ep_loss", "accuracy"))
    assert stats["logits"].shape == (0, 4)
    loss.backward()
    assert all_finite(model)
    assert math.isnan(F.cross_entropy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).item())  # the published form


def test_empty_message_is_finite_where_the_mean_of_nothing_is_nan():
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert torch.isnan(PlainLogClassifier().encode(empty)[0]).all()
    model = classifier()
    loss, _ = model(empty, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert all_finite(model)
    model.continuous_update(empty, torch.tensor([0, 1]))
    assert all(math.isfinite(s) for s in model.memory.scores)


@pytest.mark.parametrize("token", [40, -1, 10**6])
@pytest.mark.parametrize("size", [1, 64])
def test_unknown_token_is_an_index_error_that_names_it(token, size):
    tokens = torch.zeros(size, 20, dtype=torch.long)
    tokens[-1, 3] = token
    with pytest.raises(IndexError, match=rf"token {token} .*40"):
        classifier()(tokens, torch.zeros(size, dtype=torch.long))


def test_messages_without_a_label_teach_no_class(batch):
    tokens, labels = batch
    model = classifier().eval()
    some = labels.clone()
    some[3:] = -100
    loss, stats = model(tokens, some)
    expected = F.cross_entropy(stats["logits"][:3], labels[:3])
    torch.testing.assert_close(stats["class_loss"], expected)
    none = torch.full_like(labels, -100)
    assert F.cross_entropy(stats["logits"], none).isnan()  # the published form
    loss, stats = model(tokens, none)
    loss.backward()
    assert loss.isfinite()
    assert stats["class_loss"].item() == 0.0
    assert all_finite(model)
    assert model.classifier[-1].bias.grad.abs().sum() == 0
    assert model.enc_mean.weight.grad.abs().sum() > 0


def test_shapes_that_do_not_fit_are_named(batch):
    tokens, labels = batch
    with pytest.raises(UsageError, match=r"\(16,\).*\(15,\)"):
        classifier()(tokens, labels[:15])
    with pytest.raises(UsageError, match=r"\(B, L\)"):
        classifier()(tokens[0], labels)
    with pytest.raises(UsageError, match="float"):
        classifier()(tokens.float(), labels)
    with pytest.raises(IndexError):
        classifier()(tokens, labels + 9)


@pytest.mark.parametrize("arguments", [{"latent_dim": 0}, {"hidden_dim": 0}, {"embed_dim": -1}, {"memory_size": -1}, {"adaptation_rate": math.nan}])
def test_impossible_sizes_are_refused_at_construction(arguments):
    with pytest.raises(UsageError):
        classifier(**arguments)


@pytest.mark.parametrize("arguments", [{"latent_dim": 1, "hidden_dim": 1, "embed_dim": 1}, {"latent_dim": 5, "hidden_dim": 7}, {"memory_size": 0}])
def test_small_and_odd_sizes_work(arguments, batch):
    model = classifier(**arguments)
    loss, _ = model(*batch)
    loss.backward()
    assert torch.isfinite(loss)
    model.continuous_update(*batch)
    assert len(model.memory) == (0 if arguments.get("memory_size") == 0 else 16)


@pytest.mark.parametrize("value", [90.0, 178.0, -90.0, 1e6])
def test_log_variance_pushed_anywhere_stays_finite_and_its_gradient_returns(value, batch):
    def push(model):
        torch.nn.init.constant_(model.enc_logvar.bias, value)
        loss, _ = model(*batch)
        loss.backward()
        return loss, model.enc_logvar.bias.grad

    if value > 0:
        published, _ = push(PlainLogClassifier())
        assert not torch.isfinite(published)
    loss, gradient = push(classifier())
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert (gradient * value > 0).all()  # a descent step leads back


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draw_from_any_log_variance_is_finite_and_one_that_encode_gave_is_not_touched(dtype):
    model = classifier().to(dtype)
    mean = torch.zeros(3, 32, dtype=dtype)
    for value in (-1e4, 178.0, 1e4):
        logvar = torch.full((3, 32), value, dtype=dtype, requires_grad=True)
        draw = model.sample_latent(mean, logvar)
        assert torch.isfinite(draw).all()
        draw.sum().backward()
        assert torch.isfinite(logvar.grad).all()
    assert not torch.isfinite(mean + torch.exp(0.5 * logvar)).any(), "negative control"
    torch.nn.init.constant_(model.enc_logvar.bias, 90.0)
    made = model.encode(torch.randint(0, 40, (3, 9)))[1].detach()
    torch.manual_seed(0)
    draw = model.sample_latent(mean, made)
    torch.manual_seed(0)
    assert torch.equal(draw, mean + torch.exp(0.5 * made) * batch_noise_like(mean))


@pytest.mark.parametrize("value", [1e4, -1e4, 90.0, -90.0])
@pytest.mark.parametrize("part", ["mean", "logvar", "prior", "flow", "diffusion", "drift"])
@pytest.mark.parametrize("half", ["weights", "autocast"])
def test_float16_stays_finite_with_any_part_pushed_out(part, value, half, batch):
    model = classifier()
    pushed = {
        "mean": [model.enc_mean.bias],
        "logvar": [model.enc_logvar.bias],
        "prior": [model.z0_logvar],
        "flow": [layer.transform_net[-1].bias for layer in model.flow.flows],
        "diffusion": [model.dynamics.log_diffusion_net[-1].bias],
        "drift": [model.dynamics.drift_net[-1].bias],
    }[part]
    for p in pushed:
        torch.nn.init.constant_(p, value)
    model = model.half() if half == "weights" else model
    with torch.autocast("cpu", torch.float16, enabled=half == "autocast"):
        loss, _ = model(*batch)
    loss.backward()
    assert loss.isfinite()
    assert all_finite(model)


def test_published_forms_leave_float16_where_these_are_pushed():
    d = torch.full((16, 32), 1e4).half().requires_grad_()
    z0_logvar = torch.zeros(32).half().requires_grad_()
    (0.05 * (d.double().square() * torch.exp(-z0_logvar).double()).mean()).backward()
    assert z0_logvar.grad.isinf().any()
    flow = PlainFlow(32, 64)
    for layer in flow.flows:
        torch.nn.init.constant_(layer.transform_net[-1].bias, 1e4)
    assert not flow(torch.randn(4, 32), torch.full((4, 1), 0.5))[0].half().isfinite().all()


def test_model_with_a_log_variance_of_90_still_learns():
    model = classifier()
    torch.nn.init.constant_(model.enc_logvar.bias, 90.0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    data, losses = LogDataset(4000, seed=0), []
    for i in range(120):
        loss, stats = model(*data.batch(range(32 * i, 32 * i + 32)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(stats["class_loss"].item())
    held_out, labels = data.batch(range(3840, 4000))
    assert all(math.isfinite(value) for value in losses)
    assert (model.predict(held_out) == labels).double().mean() > 0.5


@pytest.mark.parametrize("logvar", [-18.0, -25.0, 0.0, 2.0])
def test_kl_of_equal_distributions_is_zero_where_the_published_one_is_biased(logvar, batch):
    def kl(model):
        for layer, value in ((model.enc_mean, 0.3), (model.enc_logvar, logvar)):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.constant_(layer.bias, value)
        torch.nn.init.constant_(model.z0_mean, 0.3)
        torch.nn.init.constant_(model.z0_logvar, logvar)
        return float(model(*batch)[1]["kl_loss"])

    assert kl(classifier()) == 0.0
    if logvar == -18.0:
        assert kl(PlainLogClassifier()) == pytest.approx(-0.198, abs=0.001)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_is_exact_and_never_negative(dtype):
    model = classifier().to(dtype)
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(64, 32, generator=generator).to(dtype)
    logvar = torch.randn(64, 32, generator=generator).to(dtype)
    q = torch.distributions.Normal(mean.double(), (0.5 * logvar.double()).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(32).double(), torch.ones(32).double())).mean()
    assert model._kl(mean, logvar).item() == pytest.approx(expected.item(), rel=1e-5)
    for tiny in (1e-3, 1e-5, 1e-7, 1e-12):
        assert model._kl(torch.zeros(1, 32).to(dtype), torch.full((1, 32), tiny).to(dtype)).item() >= 0.0
        assert model._kl(torch.zeros(1, 32).to(dtype), torch.full((1, 32), -tiny).to(dtype)).item() >= 0.0


def test_weight_of_the_normality_term_does_not_depend_on_the_batch():
    def gradient_norm(model, size):
        torch.manual_seed(1)
        z = (torch.randn(size, 32) * 0.5 + 0.5).requires_grad_()
        model.latent_test(z).backward()
        return z.grad.norm(dim=-1).sum().item()

    published = [gradient_norm(classifier(legacy_compat=True), n) for n in (32, 512)]
    corrected = [gradient_norm(classifier(), n) for n in (32, 512)]
    assert published[1] > 8 * published[0]
    assert corrected[1] == pytest.approx(corrected[0], rel=0.35)


def test_evaluation_is_deterministic_and_along_the_path_of_training(batch):
    model = classifier()
    assert model(*batch)[0] != model(*batch)[0]
    model.eval()
    state = torch.get_rng_state()
    first, second = model(*batch)[1]["logits"], model(*batch)[1]["logits"]
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, model.train().predict_logits(batch[0]).detach())
    # by hand: the mean, the drift, the flow, the classifier
    z, _ = model.encode(batch[0])
    for t in (0.0, 0.05):
        z = z + 0.05 * model.dynamics.drift(z, torch.tensor(t))
    z, _ = model.flow(z, torch.tensor(0.5))
    torch.testing.assert_close(model.classify(z), first)
    assert not torch.allclose(model.classify(model.encode(batch[0])[0]), first)  # what the published evaluation classified
    assert model.latent_test.global_step == 2  # two passes in training mode


def test_volume_of_the_flow_is_part_of_the_loss(batch):
    model = classifier().eval()
    quiet = model(*batch)[1]["ep_loss"]
    for layer in model.flow.flows:
        torch.nn.init.constant_(layer.transform_net[-1].bias[:32], 3.0)
    assert model(*batch)[1]["ep_loss"] > quiet + 1.0
    model(*batch)[0].backward()
    assert all(layer.transform_net[-1].bias.grad.abs().sum() > 0 for layer in model.flow.flows)


def test_encoder_tells_order_where_the_published_one_sees_a_bag(batch):
    tokens = batch[0]
    shuffled = tokens[:, torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    legacy, model = classifier(legacy_compat=True), classifier()
    torch.testing.assert_close(legacy.encode(tokens)[0], legacy.encode(shuffled)[0])
    assert not torch.allclose(model.encode(tokens)[0], model.encode(shuffled)[0], atol=1e-3)


def test_short_and_long_messages_take_the_same_features():
    model = classifier()
    tokens = torch.randint(40, (3, 12))
    alone = torch.cat([model.encode(row.unsqueeze(0))[0] for row in tokens])  # fewer characters than the alphabet: the direct form
    torch.testing.assert_close(alone, model.encode(tokens.repeat(2, 1))[0][:3])


def test_legacy_model_is_the_plain_rendering_seeds_included(batch):
    torch.manual_seed(5)
    plain = PlainLogClassifier()
    torch.manual_seed(5)
    legacy = RaccoonLogClassifier(log_vocab_size, NUM_LOG_CLASSES, legacy_compat=True)
    names = dict(plain.named_parameters())
    for name, p in legacy.named_parameters():
        assert torch.equal(p, names[name]), name
    for mode in (True, False):
        torch.manual_seed(9)
        expected = plain.train(mode)(*batch)[1]
        torch.manual_seed(9)
        found = legacy.train(mode)(*batch)[1]
        for key in ("class_loss", "kl_loss", "accuracy"):
            assert float(found[key]) == pytest.approx(expected[key], rel=2e-6), key


def test_weights_load_strictly_both_ways(batch):
    legacy, model = classifier(legacy_compat=True), classifier()
    with torch.no_grad():
        legacy.enc_mean.weight.add_(1.0)
    model.load_state_dict(legacy.state_dict(), strict=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in legacy.state_dict().items())
    legacy.load_state_dict(model.state_dict(), strict=True)


def test_memory_and_optimizer_are_in_the_state_once_there_is_something(batch):
    model = classifier()
    for _ in range(3):
        model.continuous_update(*batch)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(isinstance(v, torch.Tensor) for v in loaded.values())
    other = classifier()
    other.load_state_dict(loaded)
    assert len(other.memory) == len(model.memory) == 48
    for each in (model, other):
        torch.manual_seed(3)
        each.continuous_update(*batch)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    wrapped = torch.nn.ModuleDict({"inner": classifier()})
    wrapped.load_state_dict({f"inner.{k}": v for k, v in loaded.items()})
    assert len(wrapped["inner"].memory) == 48
    classifier(legacy_compat=True).load_state_dict({k: v for k, v in loaded.items() if k != "_extra_state"})


def test_copies_learn_on_their_own(batch):
    model = classifier()
    model.continuous_update(*batch)
    other = copy.deepcopy(model)
    before = [p.clone() for p in model.parameters()]
    other.continuous_update(*batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_far_latents_stay_finite_and_keep_a_gradient(batch):
    model = classifier()
    torch.nn.init.constant_(model.enc_mean.bias, 1e4)
    loss, _ = model(*batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all_finite(model)
    assert (model.enc_mean.bias.grad > 0).all()  # toward the origin


@pytest.mark.parametrize("lr", [0.1, 1.0])
def test_users_own_loop_stays_finite_at_a_rate_far_too_high(lr):
    def largest_loss(model):
        optimizer, data, largest = torch.optim.AdamW(model.parameters(), lr), LogDataset(1600, seed=0), 0.0
        for i in range(50):
            loss, _ = model(*data.batch(range(32 * i, 32 * i + 32)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not math.isfinite(loss.item()):
                return math.inf
            largest = max(largest, loss.item())
        return largest

    torch.manual_seed(0)
    published = largest_loss(PlainLogClassifier())
    corrected = largest_loss(classifier())
    assert math.isfinite(corrected)
    assert published > 1e6 * corrected
