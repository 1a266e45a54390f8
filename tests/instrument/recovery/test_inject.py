"""instrument.inject: each place is really spoilt, at the step asked for, the same way for the same seed, and undone exactly."""

import math

import pytest
import torch
from torch import nn

import instrument
from instrument.injection import PLACES, InjectedNothing
from latent_drift.errors import UsageError


def build(optimizer=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    return model, optimizer(model.parameters())


def train(model, optimizer, steps=5, scaler=None, seen=None):
    """Losses of a few steps; `seen(index, loss)` is called between backward and step."""
    losses = []
    torch.manual_seed(1)
    for index in range(steps):
        x = torch.randn(16, 4)
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        (loss if scaler is None else scaler.scale(loss)).backward()
        if seen is not None:
            seen(index, loss)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())
    return losses


def scaler_for(place):
    return torch.amp.GradScaler("cpu", init_scale=4.0) if place == "loss_scale" else None


def gradients_are_finite(model):
    return all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


SPOILS_GRADIENTS = {"input", "weight", "activation", "loss", "gradient", "loss_scale"}


@pytest.mark.parametrize("place", PLACES)
def test_the_fault_goes_in_at_the_step_asked_for(place):
    model, optimizer = build()
    finite = {}
    states = {}

    def seen(index, loss):
        finite[index] = gradients_are_finite(model)
        states[index] = all(torch.isfinite(v).all() for s in optimizer.state.values() for v in s.values())

    with instrument.inject(place, "nan", step=3) as injected:
        train(model, optimizer, steps=4, scaler=scaler_for(place), seen=seen)
    assert [entry.step for entry in injected.log] == [3]
    assert finite[0]
    assert finite[2]
    assert finite[3] is (place not in SPOILS_GRADIENTS)
    if place == "state":
        assert states[2]
        assert not states[3]


@pytest.mark.parametrize("place", PLACES)
def test_equal_seeds_spoil_the_same_elements_and_others_do_not(place):
    def log(seed):
        model, optimizer = build()
        with instrument.inject(place, 1e3, probability=0.5, seed=seed) as injected:
            train(model, optimizer, steps=12, scaler=scaler_for(place))
        return [(e.step, e.target) for e in injected.log], [p.detach().clone() for p in model.parameters()]

    first, numbers = log(3)
    again, same_numbers = log(3)
    assert first == again
    assert all(torch.equal(a, b) or (torch.isnan(a) == torch.isnan(b)).all() for a, b in zip(numbers, same_numbers, strict=True))
    assert any(log(seed)[0] != first for seed in (4, 5))
    assert 0 < len(first) < 12


def test_the_random_streams_are_not_touched():
    def draws(block):
        model, optimizer = build()
        with block:
            train(model, optimizer, steps=3)
        return torch.rand(3)

    from contextlib import nullcontext

    assert torch.equal(draws(nullcontext()), draws(instrument.inject("gradient", 1e3, probability=0.9)))


@pytest.mark.parametrize("place", PLACES)
def test_on_leaving_names_hooks_and_memory_are_as_before(place):
    from torch.nn.modules import module as hooks

    model, optimizer = build()
    train(model, optimizer, steps=2)
    before = (
        torch.autograd.backward,
        torch.autograd.grad,
        torch.amp.GradScaler.scale,
        len(hooks._global_forward_hooks),
        len(hooks._global_forward_pre_hooks),
    )
    memory = [t.clone() for t in (*model.parameters(), *model.buffers())]
    state = {k: v.clone() for s in optimizer.state.values() for k, v in s.items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model.eval()  # buffers are read, not written

    def one_pass_and_an_error():
        scaler.scale(model(torch.randn(4, 4)).sum()).backward()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), instrument.inject(place, "inf", elements=3):
        one_pass_and_an_error()
    assert before[:3] == (torch.autograd.backward, torch.autograd.grad, torch.amp.GradScaler.scale)
    assert before[3:] == (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks))
    assert all(torch.equal(a, b) for a, b in zip(memory, (*model.parameters(), *model.buffers()), strict=True))
    assert all(torch.equal(v, state[k]) for s in list(optimizer.state.values())[-1:] for k, v in s.items())
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert scaler.get_scale() == 4.0
    assert not any(p._backward_hooks for p in model.parameters())


def test_what_was_written_over_meanwhile_stays():
    weight = nn.Linear(3, 3)
    with instrument.inject("weight", "nan", where=""):
        weight(torch.ones(1, 3))
        with torch.no_grad():
            for parameter in weight.parameters():
                parameter.fill_(7.0)
    assert all(bool((p == 7.0).all()) for p in weight.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_flipped_exponent_bit_is_one_bit(dtype):
    layer = nn.Linear(4, 4, bias=False, dtype=dtype)
    nn.init.constant_(layer.weight, 0.5)
    with instrument.inject("weight", "bitflip") as injected:
        layer(torch.ones(1, 4, dtype=dtype))
        changed = layer.weight.detach().clone()
    assert injected.log[0].elements == 1
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    bits = (changed.view(size) ^ torch.full_like(changed, 0.5).view(size)).flatten().tolist()
    assert sorted(bin(b).count("1") for b in bits) == [0] * 15 + [1]
    assert changed.abs().max() > 1e4
    assert torch.equal(layer.weight, torch.full_like(layer.weight, 0.5)), "put back"


def test_the_sign_bit_can_be_flipped():
    layer = nn.Linear(4, 4, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    with instrument.inject("weight", "bitflip", bit=31, elements=None):
        layer(torch.ones(1, 4))
        assert torch.equal(layer.weight, torch.full((4, 4), -0.5))


def test_a_pattern_chooses_the_module():
    model, optimizer = build()
    with instrument.inject("activation", "nan", where="2", step=0) as injected:
        train(model, optimizer, steps=1)
    assert injected.log[0].target == "2"


def test_several_steps_and_a_number_of_ones_own():
    model, optimizer = build()
    with instrument.inject("loss", 1e6, step=[1, 3]) as injected:
        losses = train(model, optimizer, steps=5)
    assert [e.step for e in injected.log] == [1, 3]
    assert [i for i, loss in enumerate(losses) if loss == 1e6] == [1, 3]


def test_gradients_of_autograd_grad_are_spoilt_too():
    w = torch.ones(3, requires_grad=True)
    with instrument.inject("gradient", "inf"):
        (g,) = torch.autograd.grad((w * w).sum(), w)
    assert torch.isinf(g).sum() == 1


def test_a_closure_meets_the_fault():
    model, optimizer = build(lambda parameters: torch.optim.LBFGS(parameters, max_iter=3))
    x = torch.randn(8, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        return loss

    with instrument.inject("gradient", "nan", step=1):
        optimizer.step(closure)
    assert not all(torch.isfinite(p).all() for p in model.parameters()), "LBFGS goes on with what it is given"


def test_as_a_decorator():
    @instrument.inject("loss", "nan", step=0)
    def run():
        model, optimizer = build()
        return train(model, optimizer, steps=2)

    assert math.isnan(run()[0])
    assert math.isnan(run()[0])


def test_finding_nothing_is_said():
    with pytest.warns(InjectedNothing, match=r"no buffer was met in 1 backward passes, step 9 was asked for"), instrument.inject("buffer", step=9):
        nn.Linear(2, 1)(torch.ones(1, 2)).sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"place": "weights"}, "place must be one of"),
        ({"place": "weight", "value": "big"}, "value must be a number or one of"),
        ({"place": "weight", "probability": 0.0}, "probability must lie in"),
        ({"place": "weight", "elements": 0}, "elements must be a positive count"),
        ({"place": "weight", "step": -1}, "step must be a count from 0"),
        ({"place": "weight", "step": []}, "step must be a count from 0"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(UsageError, match=message):
        instrument.inject(**arguments)


def test_opening_twice_is_refused():
    fault = instrument.inject("loss", step=0)
    with pytest.warns(InjectedNothing), fault, pytest.raises(UsageError, match="open already"):
        fault.__enter__()


@pytest.mark.parametrize("outside", [True, False])
def test_it_works_inside_and_around_a_guarded_block(outside):
    model, optimizer = build()
    if outside:
        with instrument.inject("gradient", "nan", step=2), instrument.stable() as run:
            train(model, optimizer)
    else:
        with instrument.stable() as run, instrument.inject("gradient", "nan", step=2):
            train(model, optimizer)
    assert run.tally.skipped == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())
