import copy
import math

import pytest
import torch
from torch import nn

from latent_drift.models.flat_weights import FlatWeights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))


def loss_of(model, x):
    return model(x).square().mean()


def test_steps_are_those_of_adamw_on_every_parameter():
    ours, theirs = network(), network()
    weights = FlatWeights(ours.parameters(), 1e-3, weight_decay=0.01)
    reference = torch.optim.AdamW(theirs.parameters(), 1e-3, weight_decay=0.01)
    for i in range(20):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(i))
        weights.clear_gradients()
        loss_of(ours, x).backward()
        weights.step(max_norm=0.1)
        reference.zero_grad()
        loss_of(theirs, x).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_gradient_changes_nothing(bad):
    model = network()
    before = copy.deepcopy(model.state_dict())
    weights = FlatWeights(model.parameters(), 1e-3)
    loss_of(model, torch.ones(2, 4)).backward()
    model[0].weight.grad[0, 0] = bad
    outcome = weights.step(1.0)
    assert outcome.skipped
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    # clip_grad_norm_ would have spoiled all of them
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert not torch.isfinite(model[0].weight.grad).all()


def test_norm_whose_square_overflows_is_still_a_norm():
    model = network()
    weights = FlatWeights(model.parameters(), 1e-3)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e25)
    outcome = weights.step(1.0)
    assert outcome.grad_norm == pytest.approx(1e25 * math.sqrt(58), rel=1e-3)
    assert not outcome.skipped


def test_update_is_bounded_where_adamw_alone_is_not():
    def moved(step):
        model = network()
        before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
        loss_of(model, torch.ones(2, 4)).backward()
        step(model)
        after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        return ((after - before).norm() / before.norm()).item()

    assert moved(lambda m: torch.optim.AdamW(m.parameters(), 10.0).step()) > 10  # the control
    assert moved(lambda m: FlatWeights(m.parameters(), 10.0).step(None)) <= 0.0501
    assert moved(lambda m: FlatWeights(m.parameters(), 1e-3).step(None)) < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_learn_where_adamw_breaks_or_stands_still(dtype):
    def trained(make):
        model = network().to(dtype)
        x, scale = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).to(dtype), 1.0
        step, scale = make(model)
        for _ in range(300):
            model.zero_grad()
            ((model(x).float() - 1e-3).square().mean() * scale).backward()
            step()
        return (model(x).float() - 1e-3).square().mean().item()

    def adamw(model):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, foreach=False)
        return optimizer.step, 1.0

    def flat(model):
        weights = FlatWeights(model.parameters(), 1e-4)
        return lambda: weights.step(1.0), weights.loss_scale

    naive, ours = trained(adamw), trained(flat)
    assert math.isfinite(ours)
    assert math.isnan(naive) or ours < 0.9 * naive


def test_overflow_lowers_the_loss_scale_of_float16():
    model = network().half()
    weights = FlatWeights(model.parameters(), 1e-3)
    start = weights.loss_scale
    assert start > 1
    for p in model.parameters():
        p.grad = torch.full_like(p, math.inf)
    assert weights.step(1.0).skipped
    assert weights.loss_scale == start / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_state_goes_on_bitwise(dtype):
    def go_on(model, weights, steps):
        for i in range(steps):
            weights.clear_gradients()
            (loss_of(model, torch.full((2, 4), 1.0 + i).to(dtype)) * weights.loss_scale).backward()
            weights.step(1.0)

    model = network().to(dtype)
    weights = FlatWeights(model.parameters(), 1e-3)
    go_on(model, weights, 5)
    other = copy.deepcopy(model)
    resumed = FlatWeights(other.parameters(), 1e-3)
    resumed.load_state_dict(copy.deepcopy(weights.state_dict()))
    go_on(model, weights, 5)
    go_on(other, resumed, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_changed_from_outside_are_taken_over():
    model = network()
    weights = FlatWeights(model.parameters(), 1e-3)
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    loss_of(model, torch.ones(2, 4)).backward()
    weights.step(1.0)
    assert (model[0].weight - 5.0).abs().max() < 0.01
    assert weights.stands_for(model.parameters())
    assert not weights.stands_for(model.double().parameters())


def test_parameters_share_the_vector_until_it_is_released():
    model = network()
    before = copy.deepcopy(model.state_dict())
    weights = FlatWeights(model.parameters(), 1e-3)
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1
    weights.release()
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_parameters_with_new_memory_are_taken_over_and_stepped():
    model = network()
    weights = FlatWeights(model.parameters(), 1e-3)
    model[0].weight.data = torch.full_like(model[0].weight, 5.0)
    loss_of(model, torch.ones(2, 4)).backward()
    weights.step(1.0)
    moved = (model[0].weight - 5.0).abs()
    assert 0 < moved.max() < 0.01


def test_two_optimizers_over_one_model_take_turns():
    ours, theirs = network(), network()
    pairs = [(ours, FlatWeights(ours.parameters(), 1e-3), FlatWeights(ours.parameters(), 1e-2))]
    pairs.append((theirs, *(torch.optim.AdamW(theirs.parameters(), lr, weight_decay=0.0) for lr in (1e-3, 1e-2))))
    for i in range(6):
        for model, *optimizers in pairs:
            model.zero_grad()
            loss_of(model, torch.full((2, 4), 1.0 + i)).backward()
            optimizer = optimizers[i % 2]
            optimizer.step(None)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_graph_from_before_a_step_is_refused_as_torch_refuses_it():
    model = network()
    weights = FlatWeights(model.parameters(), 1e-3)
    x = torch.ones(2, 4, requires_grad=True)
    stale = loss_of(model, x)
    loss_of(model, x).backward()
    weights.step(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()
