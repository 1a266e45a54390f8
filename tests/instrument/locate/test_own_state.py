"""A state that a script carries from step to step: the statement that updates it is named, and it is mended, so that training goes on."""

import inspect
import math

import torch
from torch import nn

import instrument
from instrument.locate.own_state import update_of_state


def _line_of(text):
    lines, _ = inspect.getsourcelines(inspect.getmodule(_line_of))
    (found,) = [number for number, line in enumerate(lines, 1) if line.rstrip().endswith(f"# {text}")]
    return found


class _GroupWeights:
    """Multiplicative weights of groups (group DRO)."""

    def __init__(self, groups):
        self.q = torch.ones(groups)

    def update(self, losses):
        self.q = self.q * torch.exp(0.5 * losses.detach())  # multiplicative weights
        return self.q / self.q.sum()


def _train_with_group_weights(steps=30):
    torch.manual_seed(0)
    data = [(torch.randn(50, 3) + g, torch.randn(50, 1) * (g + 1)) for g in range(4)]
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    weights = _GroupWeights(4)
    for _ in range(steps):
        losses = torch.stack([(model(x) - y).pow(2).mean() for x, y in data])
        loss = (weights.update(losses) * losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_weights_that_overflow_are_named_where_they_are_multiplied():
    assert math.isnan(_train_with_group_weights()), "negative control"
    with instrument.stable() as run:
        loss = _train_with_group_weights()
    assert run.first_cause is not None
    assert (run.first_cause.code, run.first_cause.line) == ("NS806", _line_of("multiplicative weights"))
    assert 0.0 < loss < 100.0, "the mean squared errors are between 2 and 25"


def _walk(steps=40):
    """A policy's own action enters its next observation, and the first estimate of a variance, of one number, divides 0 by 0."""
    torch.manual_seed(0)
    policy = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    state, seen, total = torch.randn(3), 0, torch.zeros(3)
    for _ in range(steps):
        seen += 1
        total = total + state * 0.01
        spread = (state - state).square().sum() / torch.tensor(float(seen - 1))  # a variance of one
        action = policy(state) + spread
        state = 0.9 * state + 0.1 * action.detach() + 0.05 * torch.randn(3)
        loss = (action - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), state


def test_a_state_that_went_bad_with_a_step_does_not_spoil_the_others():
    loss, state = _walk()
    assert math.isnan(loss), "negative control"
    with instrument.stable() as run:
        loss, state = _walk()
    assert run.first_cause is not None
    assert run.first_cause.line == _line_of("a variance of one")
    assert loss < 1.0
    assert bool(torch.isfinite(state).all())
    assert run.tally.skipped <= 4


def test_which_statements_update_a_state():
    best = running = velocity = drawn = torch.zeros(2)
    for _ in range(2):
        best = torch.zeros(2)
        running = 0.9 * running + 0.1 * torch.ones(2)  # the running mean
        velocity = torch.zeros(2) if velocity is drawn else velocity
        velocity.mul_(0.9).add_(torch.ones(2))  # the velocity
        drawn = torch.ones(2) * 2
    assert update_of_state(running) is not None
    assert update_of_state(running)[1].line == _line_of("the running mean")
    assert update_of_state(velocity)[1].line == _line_of("the velocity")
    assert update_of_state(best) is None
    assert update_of_state(drawn) is None, "made anew each time"


def test_a_complex_state_is_read_too():
    phase = torch.ones(2, dtype=torch.complex64)
    weight = nn.Parameter(torch.ones(2))
    losses = []
    with instrument.stable() as run:
        for _ in range(6):
            phase = phase * (1e20 + 1e20j)  # the phase
            loss = (weight * (phase / phase.abs()).real).square().sum()
            loss.backward()
            with torch.no_grad():
                weight -= 0.1 * weight.grad
                weight.grad = None
            losses.append(loss.item())
    assert run.first_cause is not None
    assert run.first_cause.line in (_line_of("the phase"), _line_of("the phase") + 1)


class _HeavyBall:
    def __init__(self, parameters, momentum):
        self.parameters = parameters
        self.velocities = [torch.zeros_like(p) for p in parameters]
        self.momentum = momentum

    @torch.no_grad()
    def step(self):
        for p, v in zip(self.parameters, self.velocities, strict=True):
            v.mul_(self.momentum).add_(p.grad)
            p.sub_(1e-3 * v)
            p.grad = None


def _train_by_hand(steps=400):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    ball = _HeavyBall(list(net.parameters()), momentum=1.3)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(torch.tanh(net(x)), y)
        loss.backward()
        ball.step()
    return net, ball


def test_a_velocity_that_overflows_is_forgotten():
    net, ball = _train_by_hand()
    assert not all(bool(torch.isfinite(v).all()) for v in ball.velocities), "negative control"
    with instrument.stable() as run:
        net, ball = _train_by_hand()
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert any("the update remembers of them were set to 0" in event.message for event in run.events if event.code == "NS508")
