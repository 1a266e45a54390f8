"""What a step needs and leaves behind: usable rates, buffers, optimizer state, counters, copies of what is updated by hand."""

import math

import pytest
import torch
from torch import nn

import instrument
from latent_drift.errors import NumericalError


def net_with_norm(momentum=0.1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=momentum), nn.Tanh(), nn.Linear(6, 1))


def fit(model, steps=8, bad=(), optimizer=None, after=None, **config):
    with instrument.stable(profile="guard", **config) as run:
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
        torch.manual_seed(1)
        for index in range(steps):
            x = torch.randn(16, 4)
            if index in bad:
                x = x * math.nan
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
            if after is not None:
                after(index, optimizer)
    return run


# Buffers --------------------------------------------------------------------------------------------------------------


def test_running_statistics_are_put_back_as_they_were_after_the_last_good_step():
    assert not torch.isfinite(plain_statistics()).all(), "negative control: one bad batch and they are NaN for ever"
    model = net_with_norm()
    kept = {}

    def after(index, optimizer):
        kept[index] = model[1].running_mean.clone()

    run = fit(model, bad=(5,), after=after)
    assert torch.equal(kept[5], kept[4])
    assert torch.isfinite(model[1].running_var).all()
    assert [(e.code, e.action) for e in run.events if e.op == "buffer"] == [("NS808", "rolled-back")]


def plain_statistics():
    model = net_with_norm()
    for index in range(8):
        model(torch.randn(16, 4) * (math.nan if index == 5 else 1.0))
    return model[1].running_mean


def test_statistics_spoilt_by_the_very_first_batch_are_as_before_any():
    model = net_with_norm()
    fit(model, steps=1, bad=(0,))
    assert torch.equal(model[1].running_mean, torch.zeros(6))
    assert torch.equal(model[1].running_var, torch.ones(6))


@pytest.mark.parametrize("built_before", [True, False])
def test_a_statistic_of_ones_own_is_put_back_wherever_the_module_was_built(built_before):
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 1)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)  # a new tensor at each step
            return self.out(x)

    model = Running() if built_before else None
    with instrument.stable(profile="guard") as run:
        model = model or Running()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for index in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 4) * (math.nan if index == 4 else 1.0)).pow(2).mean().backward()
            optimizer.step()
            if index == 3:
                before = model.mean.clone()
            if index == 4:
                assert torch.equal(model.mean, before)
    assert torch.equal(model.mask, torch.full((4, 4), -math.inf).triu(1)), "a mask is meant"
    assert run.tally.skipped == 1


def test_a_buffer_that_turns_infinite_in_a_healthy_step_is_meant():
    class Best(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 1)
            self.register_buffer("bias_mask", torch.zeros(3))

        def forward(self, x):
            self.bias_mask[0] = -math.inf
            return self.out(x)

    model = Best()
    run = fit(model, steps=4)
    assert model.bias_mask[0] == -math.inf
    assert run.events == ()


def test_statistics_that_overflow_in_a_finite_step_are_put_back():
    model = net_with_norm()
    with instrument.stable(profile="guard"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for scale in (1.0, 1e25, 1.0):
            optimizer.zero_grad()
            model(torch.randn(16, 4) * scale).mean().backward()
            optimizer.step()
    assert torch.isfinite(model[1].running_var).all()


# Learning rates -------------------------------------------------------------------------------------------------------


def rates_of(schedule, profile="guard", steps=8):
    model = nn.Linear(2, 1)
    with instrument.stable(profile=profile) as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        moves = []
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            before = model.bias.item()
            optimizer.step()
            moves.append(before - model.bias.item())
            scheduler.step()
    return moves, run, optimizer


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e35], ids=str)
def test_a_rate_that_cannot_be_used_is_the_last_usable_one_for_that_step(bad):
    moves, run, _ = rates_of(lambda t: bad if t in (3, 4) else 1.0 / (1 + t))
    assert moves == pytest.approx([0.1, 0.05, 0.1 / 3, 0.1 / 3, 0.1 / 3, 0.1 / 6, 0.1 / 7, 0.1 / 8], rel=1e-4)
    assert [(e.code, e.action) for e in run.events if e.repaired] == [("NS512", "repaired")]


def test_what_the_scheduler_reads_is_what_it_wrote():
    _, _, optimizer = rates_of(lambda t: math.nan if t >= 3 else 1.0)
    assert math.isnan(optimizer.param_groups[0]["lr"])


def test_a_negative_rate_is_left_under_guard_and_zero_under_train():
    moves, run, _ = rates_of(lambda t: 1.0 if t < 3 else -1.0)
    assert moves[4] == pytest.approx(-0.1, rel=1e-4)
    assert run.events == ()
    moves, run, _ = rates_of(lambda t: 1.0 if t < 3 else -1.0, profile="train")
    assert moves[4] == 0.0
    assert "climbs the loss" in next(e.message for e in run.events if e.code == "NS512")


def test_a_negative_rate_from_rounding_at_the_end_of_a_schedule_is_none():
    _, run, _ = rates_of(lambda t: 1.0 if t < 3 else -1e-9, profile="train")
    assert not any(e.code == "NS512" for e in run.events)


def test_a_huge_rate_explodes_once_and_is_refused_from_then_on():
    moves, run, _ = rates_of(lambda t: 1e28 if t >= 3 else 1.0)
    assert moves[3] == 0.0, "put back"
    assert moves[4:] == pytest.approx([0.1] * 4, rel=1e-4)
    assert {e.code for e in run.events} >= {"NS508", "NS512"}


@pytest.mark.parametrize("rate", [1e14, 1e25])
def test_a_rate_that_explodes_from_the_first_step_on_is_made_smaller_until_an_update_holds(rate):
    def train():
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        x = torch.randn(32, 3)
        for _ in range(40):
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
        return model(x).pow(2).mean().item(), optimizer

    assert not math.isfinite(train()[0]), "negative control"
    with instrument.stable() as run:
        loss, optimizer = train()
    assert loss < 10.0
    assert optimizer.param_groups[0]["lr"] == rate, "the script's own setting stays"
    assert 0 < run.tally.skipped < 30
    assert any("made the parameters explode" in e.message for e in run.events if e.code == "NS512")


class Poisson:
    """A likelihood by LBFGS that goes through the logarithm of negative numbers; the script reads the loss of every step."""

    def __init__(self):
        torch.manual_seed(0)
        self.x = torch.cat([torch.ones(200, 1), torch.randn(200, 2)], 1)
        self.counts = torch.poisson((self.x @ torch.tensor([3.0, 0.9, -0.7])).clamp(min=0.05))
        self.w = torch.tensor([6.0, 0.0, 0.0], requires_grad=True)
        self.optimizer = torch.optim.LBFGS([self.w], lr=1.0, max_iter=10)

    def closure(self):
        self.optimizer.zero_grad()
        rate = self.x @ self.w
        loss = (rate - self.counts * torch.log(rate)).mean()
        loss.backward()
        return loss


def test_a_closure_step_that_is_left_out_gives_its_loss_all_the_same():
    fit = Poisson()
    with instrument.stable() as run:
        losses = [fit.optimizer.step(fit.closure).item() for _ in range(8)]
        rate = fit.optimizer.param_groups[0]["lr"]
        fit.optimizer.param_groups[0]["lr"] = math.nan
        losses.append(fit.optimizer.step(fit.closure).item())
    assert rate == 1.0
    assert torch.isfinite(fit.w).all()
    assert math.isfinite(losses[-1])
    assert run.tally.skipped > 0


def test_a_closure_step_without_any_usable_rate_gives_its_loss():
    fit = Poisson()
    fit.optimizer.param_groups[0]["lr"] = math.nan
    before = fit.w.detach().clone()
    with instrument.stable() as run:
        loss = fit.optimizer.step(fit.closure)
    assert math.isfinite(loss.item())
    assert torch.equal(fit.w, before)
    assert run.tally.skipped == 1


# What makes an update go bad although its gradients are good ----------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=1e3),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=9.0),
        lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=2.0),
    ],
    ids=["decay that multiplies by -99", "momentum above 1", "an average with a factor above 1"],
)
def test_settings_that_multiply_themselves_are_caught_before_the_end(build):
    def run_it(guarded):
        parameter = nn.Parameter(torch.ones(3))
        optimizer = build([parameter])
        for _ in range(60):
            parameter.grad = torch.full((3,), 0.1)
            optimizer.step()
        return parameter

    assert not torch.isfinite(run_it(False)).all(), "negative control"
    with instrument.stable(profile="guard", gradient={"max_consecutive_skips": 1000}) as run:
        assert torch.isfinite(run_it(True)).all()
    assert any(e.code == "NS508" for e in run.events)


def test_a_second_moment_that_overflows_is_put_back():
    def run_it():
        parameter = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.Adam([parameter], lr=1e-3)
        for value in (1.0, 1e25, 1.0):
            parameter.grad = torch.full((2,), value)
            optimizer.step()
        return optimizer.state[parameter]["exp_avg_sq"]

    assert torch.isinf(run_it()).all(), "negative control: such an element never moves again"
    with instrument.stable(profile="guard"):
        assert torch.isfinite(run_it()).all()


def test_a_hook_that_spoils_the_gradients_after_they_were_judged():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)

    def hook(optimizer, args, kwargs):
        parameter.grad.fill_(math.nan)

    optimizer.register_step_pre_hook(hook)
    parameter.grad = torch.ones(2)
    with instrument.stable(profile="guard"):
        optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(2))


def test_float16_adam_goes_on_and_learns():
    target = torch.tensor([0.5, -0.5, 0.25], dtype=torch.float16)

    def run_it():
        parameter = nn.Parameter(torch.zeros(3, dtype=torch.float16))
        optimizer = torch.optim.Adam([parameter], lr=1e-2, eps=1e-8, foreach=False)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (parameter - target).pow(2).sum()
            loss.backward()
            parameter.grad[2] = 0.0  # a dead unit
            optimizer.step()
        return parameter.detach()

    assert not torch.isfinite(run_it()).all(), "negative control: 0 / 0"
    with instrument.stable(profile="guard") as run:
        found = run_it()
    assert torch.allclose(found[:2], target[:2], atol=0.02)
    assert found[2] == 0.0
    assert run.tally.skipped == 0


# State and parameters spoilt from outside -----------------------------------------------------------------------------


def test_state_that_something_else_spoilt_is_zeroed_for_that_element_only():
    model = nn.Linear(4, 1)

    def after(index, optimizer):
        if index == 3:
            optimizer.state[model.weight]["exp_avg_sq"][0, 1] = math.nan

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = fit(model, optimizer=optimizer, after=after)
    assert [(e.code, e.action) for e in run.events] == [("NS807", "zeroed")]
    assert run.tally.skipped == 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_weights_that_are_nan_at_entry_are_said_to_be():
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.fill_(math.nan)
    run = fit(model, steps=3)
    event = next(e for e in run.events if e.code == "NS804" and e.op == "step")
    assert event.action == "observed"
    assert "from the beginning" in event.message
    assert torch.isnan(model.weight).all(), "nothing is made up"


def test_one_element_that_something_else_spoilt_is_zeroed():
    model = nn.Linear(4, 1)
    spoil = {"step": 3}

    def after(index, optimizer):
        if index == spoil["step"]:
            model.weight.data[0, 2] = math.nan

    run = fit(model, after=after)
    assert torch.isfinite(model.weight).all()
    assert any((e.code, e.action) == ("NS804", "zeroed") for e in run.events)


# Counters -------------------------------------------------------------------------------------------------------------


def counters(bad, per_epoch=1, hold=True):
    model = nn.Linear(4, 1)
    with instrument.stable(profile="guard", recovery={"hold_counters": hold}) as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        average = torch.optim.swa_utils.AveragedModel(model)
        for index in range(6):
            optimizer.zero_grad()
            (model(torch.ones(2, 4)).sum() * (math.nan if index in bad else 1.0)).backward()
            optimizer.step()
            if index % per_epoch == per_epoch - 1:
                scheduler.step()
                average.update_parameters(model)
    return scheduler.last_epoch, int(average.n_averaged), run


def test_schedule_and_average_wait_for_a_skipped_step():
    assert counters(bad=())[:2] == (6, 6)
    assert counters(bad=(0, 2, 3))[:2] == (4, 4), "before their first call nothing is known: the first skip is not held"
    assert counters(bad=(2, 3))[:2] == (4, 4)
    assert counters(bad=(2, 3), hold=False)[:2] == (6, 6)


def test_a_schedule_by_epochs_advances_if_any_step_of_the_epoch_was_taken():
    assert counters(bad=(2,), per_epoch=2)[:2] == (3, 3)
    assert counters(bad=(2, 3), per_epoch=2)[:2] == (2, 2), "an epoch without one step"


def test_the_number_of_calls_that_were_held_is_in_the_summary():
    assert counters(bad=(2, 3))[2].facts()["counters_held"] == 4


# Updates by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rebound", [False, True])
def test_an_update_by_hand_that_overflows_without_any_guarded_operation(rebound):
    def run_it():
        w = torch.ones(3, requires_grad=True)
        for index in range(5):
            (w * 2.0).sum().backward()
            factor = 1e38 if index == 2 else 0.1
            if rebound:
                w = (w.detach() - factor * w.grad * 10.0).requires_grad_()
            else:
                w.data -= factor * w.grad * 10.0
                w.grad = None
        return w

    assert not torch.isfinite(run_it()).all(), "negative control"
    with instrument.stable(profile="guard"):
        assert torch.isfinite(run_it()).all()


def test_the_last_update_by_hand_is_looked_at_on_leaving():
    w = torch.ones(3, requires_grad=True)
    with instrument.stable(profile="guard"):
        w.sum().backward()
        w.data -= w.grad * 3e38 * 10.0
    assert torch.equal(w.detach(), torch.ones(3))


# Skips in a row -------------------------------------------------------------------------------------------------------


def skipped(share, after=3):
    parameter = nn.Parameter(torch.ones(8))
    with instrument.stable(profile="guard", gradient={"zero_after_skips": after}) as run:
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        for _ in range(10):
            parameter.grad = torch.ones(8)
            parameter.grad[: int(8 * share)] = math.nan
            optimizer.step()
    return run.tally.skipped, parameter.detach()


def test_after_skips_in_a_row_the_good_elements_are_used_if_they_are_the_greater_part():
    count, parameter = skipped(0.25)
    assert count == 3, "and zeroed from then on, until a step fails no more"
    assert parameter[:2].tolist() == [1.0, 1.0]
    assert (parameter[2:] < 1.0).all()
    assert skipped(0.75)[0] == 10
    assert skipped(0.25, after=0)[0] == 10


def test_a_raise_leaves_parameters_and_buffers_finite():
    model = net_with_norm()
    with pytest.raises(NumericalError):
        fit(model, bad=(3,), gradient={"nonfinite": "raise"})
    assert all(torch.isfinite(t).all() for t in (*model.parameters(), *model.buffers()))
