import copy
import math
import pickle

import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.models.coupling_flow import CouplingLayer, RaccoonFlow, alternating_mask
from tests.benchmarks.raccoon_legacy import PlainFlow

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def pushed(flow, value):
    """Every layer's raw scales at `value`."""
    for layer in flow.flows:
        last = layer.transform_net[-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, value)
    return flow


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2, 5, 32])
def test_reverse_undoes_forward_to_rounding(dtype, dim):
    torch.manual_seed(0)
    flow = RaccoonFlow(dim, 16).to(dtype)
    z, t = torch.randn(6, dim).to(dtype), torch.rand(6, 1).to(dtype)
    there, log_det = flow(z, t)
    back, negative = flow(there, t, reverse=True)
    tolerance = 60 * torch.finfo(dtype).eps
    torch.testing.assert_close(back, z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(negative, -log_det, rtol=tolerance, atol=tolerance)
    assert log_det.shape == (6,)
    assert not torch.equal(there, z)  # not the identity at initialisation


def test_shifts_too_large_for_float16_saturate_there_and_only_there():
    torch.manual_seed(0)
    flow = RaccoonFlow(4, 8)
    for layer in flow.flows:
        torch.nn.init.constant_(layer.transform_net[-1].bias, 1e4)
    z, t = torch.randn(3, 4), torch.tensor(0.5)
    exact = flow(z, t)[0]
    assert exact.abs().max() > torch.finfo(torch.float16).max  # the control: what no half number can say
    half = flow.half()
    x = z.half().requires_grad_()
    there = half(x, t)[0]
    assert there.isfinite().all()
    assert half(there.detach(), t, reverse=True)[0].isfinite().all()
    there.float().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in half.parameters())
    bounded = CouplingLayer(4, 8).half()._in_range
    small = torch.tensor([0.0, -3.5, 16_000.0]).half()
    assert torch.equal(bounded(small), small)


def test_log_det_is_that_of_the_jacobian():
    torch.manual_seed(0)
    flow = RaccoonFlow(5, 16).double()
    z, t = torch.randn(1, 5, dtype=torch.float64), torch.full((1, 1), 0.3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, t)[0].squeeze(0), z).squeeze(1)
    assert flow(z, t)[1].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-10)


def test_layer_follows_the_stated_formula():
    torch.manual_seed(0)
    layer = CouplingLayer(6, 16, alternating_mask(6, 1), time_dim=8)
    x, features = torch.randn(4, 6), torch.randn(4, 8)
    raw, shift = layer.transform_net(torch.cat([x * layer.mask, features], dim=-1)).chunk(2, dim=-1)
    scale = 3.0 * torch.tanh(raw / 3.0)
    expected = torch.where(layer.mask.bool(), x, x * scale.exp() + shift)
    y, log_det = layer(x, features)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(log_det, (scale * (1 - layer.mask)).sum(-1))


@pytest.mark.parametrize("num_layers", [4, 32, 33])
def test_total_log_scale_is_bounded_whatever_the_depth(num_layers):
    def reached(flow):
        pushed(flow, 1e4)
        z = torch.ones(1, 8)
        total = torch.zeros(8)
        features = flow.time_embed.embed_time(torch.full((1, 1), 0.5))
        for layer in flow.flows:
            raw = layer.transform_net(torch.cat([z * layer.mask, features], dim=-1)).chunk(2, dim=-1)[0]
            total += layer.scale_range * torch.tanh(raw[0] / layer.scale_range) * (1 - layer.mask)
        return total.max().item()

    assert reached(RaccoonFlow(8, 16, num_layers)) <= 6.0 + 1e-5
    assert reached(RaccoonFlow(8, 16, num_layers, legacy_compat=True)) == pytest.approx(3.0 * math.ceil(num_layers / 2))


def test_deep_flow_stays_finite_where_the_published_one_overflows():
    def worst(flow):
        return pushed(flow, 50.0)(torch.full((2, 8), 1.0), torch.full((2, 1), 0.5))[0].abs().max().item()

    assert not worst(RaccoonFlow(8, 16, 60, legacy_compat=True)) < torch.finfo(torch.float32).max
    assert worst(RaccoonFlow(8, 16, 60)) < 1e9


def test_gradient_of_a_saturated_scale_returns():
    def slope(legacy):
        torch.manual_seed(0)
        layer = CouplingLayer(4, 8, legacy_compat=legacy)
        last = layer.transform_net[-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, 90.0)
        layer(torch.ones(1, 4), torch.zeros(1, 32))[1].sum().backward()
        return last.bias.grad[:4].max().item()

    assert slope(legacy=True) == 0.0
    assert slope(legacy=False) > 1e-6


def train_density(flow, steps=80):
    """Fit data far from the flow's start by maximum likelihood at a rate thirty times too high; the losses."""
    optimizer = torch.optim.AdamW(flow.parameters(), lr=0.03)
    data = torch.randn(128, 4, generator=torch.Generator().manual_seed(0)) * 0.1 + 2.0
    losses = []
    for _ in range(steps):
        z, log_det = flow(data, torch.full((1, 1), 0.5))
        loss = (0.5 * z.square().sum(-1) - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_thirty_two_layers_train_at_a_rate_far_too_high():
    torch.manual_seed(0)
    published = train_density(RaccoonFlow(4, 16, 32, legacy_compat=True))
    torch.manual_seed(0)
    corrected = train_density(RaccoonFlow(4, 16, 32))
    assert not all(value < 1e6 for value in published)
    assert all(value < 1e6 for value in corrected)
    assert min(corrected[-10:]) < corrected[0] - 5.0


def test_far_latents_are_passed_on_with_their_gradient():
    torch.manual_seed(0)
    flow = RaccoonFlow(4, 16, 32)
    z = torch.full((2, 4), 1e6, requires_grad=True)
    y, log_det = flow(z, torch.full((1, 1), 0.5))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(log_det).all()
    assert (z.grad != 0).all()


def test_mask_none_chooses_one_and_times_of_width_one_are_embedded():
    torch.manual_seed(0)
    layer = CouplingLayer(6, 8, None)
    assert sorted(layer.mask.tolist()) == [0.0] * 3 + [1.0] * 3
    x, t = torch.randn(5, 6), torch.rand(5, 1)
    flow = RaccoonFlow(6, 8)
    embedded = layer(x, flow.time_embed.embed_time(t))
    assert all(torch.allclose(a, b) for a, b in zip(layer(x, t), embedded, strict=True))
    assert torch.allclose(layer(x, t[:1])[0], layer(x, t[:1].expand(5, 1))[0])


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.full((1, 1), 0.5), torch.full((3,), 0.5)])
def test_one_time_serves_all(t):
    torch.manual_seed(0)
    flow, z = RaccoonFlow(4, 8), torch.randn(3, 4)
    assert torch.allclose(flow(z, t)[0], flow(z, torch.full((3, 1), 0.5))[0])


def test_names_of_the_contract():
    flow = RaccoonFlow(4, 8)
    assert flow.coupling_layers is flow.flows
    assert torch.equal(flow._make_mask(4, 0), flow.flows[0].mask)
    assert torch.equal(flow.flows[0].mask + flow.flows[1].mask, torch.ones(4))


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: RaccoonFlow(4, 8, time_dim=7), "time_dim"),
        (lambda: RaccoonFlow(4, 8, num_layers=0), "num_layers"),
        (lambda: RaccoonFlow(0, 8), "latent_dim"),
        (lambda: CouplingLayer(4, 0), "hidden"),
        (lambda: CouplingLayer(4, 8, torch.ones(3)), "mask"),
        (lambda: CouplingLayer(2, 8, torch.tensor([0.5, 0.5])), "mask"),
        (lambda: CouplingLayer(2, 8, scale_range=0.0), "scale_range"),
    ],
)
def test_impossible_flows_are_refused_at_construction(build, argument):
    with pytest.raises(UsageError, match=argument):
        build()


def test_legacy_agrees_with_the_plain_rendering():
    torch.manual_seed(2)
    plain = PlainFlow(32, 64)
    torch.manual_seed(2)
    legacy = RaccoonFlow(32, 64, legacy_compat=True)
    z, t = torch.randn(8, 32), torch.full((8, 1), 0.5)
    for reverse in (False, True):
        for ours, theirs in zip(legacy(z, t, reverse), plain(z, t, reverse), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_changed_mask_is_seen():
    torch.manual_seed(0)
    layer = CouplingLayer(4, 8)
    x, time = torch.randn(3, 4), torch.full((3, 1), 0.5)
    layer(x, time)
    other = CouplingLayer(4, 8, mask=1 - layer.mask)
    other.transform_net.load_state_dict(layer.transform_net.state_dict())
    expected = other(x, time)[0]
    in_place, replaced, loaded = copy.deepcopy(layer), copy.deepcopy(layer), copy.deepcopy(layer)
    in_place.mask.sub_(1).neg_()
    replaced.mask = 1 - layer.mask
    loaded.load_state_dict(other.state_dict())
    for changed in (in_place, replaced, loaded):
        assert torch.equal(changed(x, time)[0], expected)
    assert not torch.equal(layer(x, time)[0], expected)


def test_a_layer_first_run_under_inference_mode_trains_afterwards():
    layer = CouplingLayer(4, 8)
    x, time = torch.randn(3, 4), torch.full((3, 1), 0.5)
    with torch.inference_mode():
        layer(x, time)
    y, log_det = layer(x, time)
    (y.sum() + log_det.sum()).backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_copies_and_pickles_carry_what_the_state_dict_does():
    layer = CouplingLayer(4, 8)
    layer(torch.randn(3, 4), torch.full((3, 1), 0.5))
    assert [name for name, _ in layer.named_buffers()] == ["mask"]
    assert pickle.loads(pickle.dumps(layer))._gated is None
    assert copy.deepcopy(layer)._gated is None
    assert layer.half()(torch.randn(3, 4).half(), torch.full((3, 1), 0.5).half())[0].dtype == torch.float16
