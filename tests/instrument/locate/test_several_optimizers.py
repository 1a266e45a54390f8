"""One forward pass may serve two losses, and the first optimizer to step need not be the one whose loss is spoilt by what was made there."""

import inspect
import math

import torch
from torch import nn

import instrument


def _line_of(text: str) -> int:
    lines, first = inspect.getsourcelines(inspect.getmodule(_line_of))
    (found,) = [number for number, line in enumerate(lines, max(first, 1)) if text in line and "_line_of" not in line]
    return found


def _train_actor_and_critic(steps: int, spoilt: bool) -> tuple[float, torch.Tensor]:
    """The critic's step comes between the actor's forward pass and the actor's loss."""
    torch.manual_seed(0)
    actor, critic = nn.Linear(3, 1), nn.Linear(4, 1)
    of_actor = torch.optim.Adam(actor.parameters(), lr=1e-3)
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        x = torch.randn(16, 3)
        a = torch.tanh(8.0 * actor(x) + 9.0)
        density = (1 - (a if spoilt else a.detach()) ** 2).log()  # the density of the squashed action
        if not spoilt:
            density = torch.where(torch.isinf(density), 0.0, density)
        value = (critic(torch.cat([x, a.detach()], 1)) - x.sum(1, keepdim=True)).square().mean()
        of_critic.zero_grad()
        value.backward()
        of_critic.step()
        loss = -0.1 * density.mean() - critic(torch.cat([x, a], 1)).mean()
        of_actor.zero_grad()
        loss.backward()
        of_actor.step()
    return loss.item(), actor.weight.detach().clone()


def test_what_is_made_before_the_other_optimizer_steps_is_named_and_mended():
    plain, _ = _train_actor_and_critic(4, spoilt=True)
    assert not math.isfinite(plain), "negative control"
    with instrument.stable() as run:
        loss, _ = _train_actor_and_critic(4, spoilt=True)
    cause = run.first_cause
    assert cause is not None
    assert (cause.code, cause.line) == ("NS205", _line_of("the density of the squashed action"))
    assert math.isfinite(loss)
    assert "NS805" not in {event.code for event in run.events}


def test_what_is_masked_before_the_loss_is_no_finding():
    with instrument.stable(profile="guard") as run:
        loss, weight = _train_actor_and_critic(12, spoilt=False)
    plain, weight_plain = _train_actor_and_critic(12, spoilt=False)
    assert (loss, run.events) == (plain, ())
    assert torch.equal(weight, weight_plain)


def test_a_line_of_infinities_is_known_to_be_harmless_once_every_optimizer_has_stepped():
    first, second = (torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1) for _ in range(2))
    with instrument.stable() as run:
        for _ in range(2):
            for optimizer in (first, second):
                (p,) = optimizer.param_groups[0]["params"]
                mask = torch.log(torch.tensor([0.0, 1.0, 1.0]))  # minus infinity, on purpose
                torch.softmax(p + mask, 0).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        site = next(iter(run.search.births._harmless), None)
    assert run.events == ()
    assert site is not None
    assert site[1] == _line_of("minus infinity, on purpose")


def test_what_made_a_clipped_gradient_large_is_looked_for_in_its_own_optimizers_loss():
    torch.manual_seed(0)
    judge, maker = nn.Linear(2, 1), nn.Linear(2, 2)
    of_judge = torch.optim.SGD(judge.parameters(), lr=1e-6)
    of_maker = torch.optim.SGD(maker.parameters(), lr=1e-6)
    with instrument.stable() as run:
        for _ in range(4):
            real = torch.full((8, 2), 30.0)
            loss = (judge(real) * 40.0).square().mean()  # the judge's own loss
            of_judge.zero_grad()
            loss.backward()
            of_judge.step()
            made = (judge(maker(torch.randn(8, 2))) * 0.01).square().mean()
            of_maker.zero_grad()
            made.backward()
            of_maker.step()
    assert run.first_cause is not None
    assert (run.first_cause.code, run.first_cause.line) == ("NS507", _line_of("the judge's own loss"))
