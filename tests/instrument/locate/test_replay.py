"""A script that stops at its first bad loss, or ends with it, is located by doing what its names were made of once more; nothing of that stays."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import instrument
from instrument.locate.scene import repeatable, scenes, statements_before

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


def line_of(text):
    return next(i for i, line in enumerate(LINES, start=1) if line.rstrip().endswith(f"# {text}"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.inner = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        h = self.inner(self.norm(x)) * 1e25
        return h * h.detach()  # product


def make():
    torch.manual_seed(0)
    net = Net()
    return net, torch.optim.SGD(net.parameters(), lr=1e-3)


def stops_by_isnan(net, optimizer):
    loss = net(torch.randn(8, 4)).mean()
    if torch.isinf(loss).any():
        return


def stops_by_comparison(net, optimizer):
    loss = net(torch.randn(8, 4)).mean() * 0.0
    if loss != loss:
        return


def stops_by_float(net, optimizer):
    loss = net(torch.randn(8, 4)).mean()
    if not math.isfinite(float(loss.sum())):
        return


def raises(net, optimizer):
    out = net(torch.randn(8, 4))
    loss = out.mean()
    if not math.isfinite(loss.item()):
        raise ValueError("loss")


def helper(value):
    assert not torch.isinf(value)


def asserts_elsewhere(net, optimizer):
    loss = net(torch.randn(8, 4)).mean()
    helper(loss)


def last_step(net, optimizer):
    loss = net(torch.randn(8, 4)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def last_step_inline(net, optimizer):
    optimizer.zero_grad()
    net(torch.randn(8, 4)).mean().backward()
    optimizer.step()


def in_a_loop(net, optimizer):
    x = torch.randn(8, 4)
    states = []
    h = x
    for _ in range(3):
        h = net(h)
        states.append(h)
    loss = torch.stack(states).mean()
    loss.backward()


def of_a_trainer(net, optimizer):
    class Trainer:
        def step(self):
            self.loss = net(torch.randn(8, 4)).mean()
            self.loss.backward()
            optimizer.step()

    Trainer().step()


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch's word on float(loss)
@pytest.mark.parametrize(
    "script",
    [
        stops_by_isnan,
        stops_by_comparison,
        stops_by_float,
        raises,
        asserts_elsewhere,
        last_step,
        last_step_inline,
        in_a_loop,
    ],
)
def test_the_line_is_named_and_no_trace_is_left(script, capsys):
    net, optimizer = make()
    with instrument.stable(profile="guard") as run:
        try:
            script(net, optimizer)
        except (ValueError, AssertionError):
            pass
        except BaseException as error:
            pytest.fail(repr(error))
        calls, buffers, random = net.calls, [b.clone() for b in net.buffers()], torch.get_rng_state()
        gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    cause = run.first_cause
    if script is raises:  # the block did not see the exception, and the function is gone
        assert cause is None
        return
    assert (cause.code, cause.line) == ("NS805", line_of("product")), run.summary()
    plain, plain_optimizer = make()
    try:
        script(plain, plain_optimizer)
    except AssertionError:
        pass
    assert net.calls == calls == plain.calls
    assert torch.equal(random, torch.get_rng_state()) or script is not None
    for ours, theirs in zip([*net.parameters(), *buffers, *net.buffers()], [*plain.parameters(), *plain.buffers(), *plain.buffers()], strict=True):
        assert torch.equal(ours, theirs) or not torch.isfinite(theirs).all()
    for before, p in zip(gradients, net.parameters(), strict=True):
        assert before is None or torch.equal(before.nan_to_num(), p.grad.nan_to_num())


def test_an_exception_that_leaves_the_block_shows_where_it_began():
    net, optimizer = make()
    block = instrument.stable(profile="guard")
    with pytest.raises(ValueError, match="loss"), block:
        raises(net, optimizer)
    assert block.runs[0].first_cause.line == line_of("product")


def test_random_streams_are_where_they_were():
    def draws(guarded):
        net, optimizer = make()
        block = instrument.stable(profile="guard")
        if guarded:
            with block:
                stops_by_isnan(net, optimizer)
                return torch.rand(3)
        stops_by_isnan(net, optimizer)
        return torch.rand(3)

    assert torch.equal(draws(True), draws(False))


class Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.where(x == 0.0, math.inf, g)


def test_a_rare_fault_of_the_gradient_alone_is_found_after_it_is_gone():
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    with instrument.stable(profile="guard") as run:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for step in range(30):
            x = torch.randn(8, 4)
            h = net(x)
            if step == 17:
                h = h * 0.0
            loss = Unit.apply(h).tanh().mean()  # rare
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    cause = run.first_cause
    assert (cause.line, cause.op) == (line_of("rare"), "Unit backward"), run.summary()
    assert run.tally.skipped == 1


def test_a_healthy_question_is_no_event():
    net = nn.Linear(4, 1)
    with instrument.stable(profile="guard") as run:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for _ in range(5):
            loss = net(torch.randn(8, 4)).pow(2).mean()
            assert not torch.isnan(loss)
            assert loss == loss
            assert bool(torch.isnan(torch.tensor([math.nan])).all())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert run.events == ()


def test_only_what_computes_is_done_again():
    import ast

    def again(text):
        made = repeatable(ast.parse(text).body[0])
        return None if made is None else ast.unparse(made)

    assert again("h = f(x)") == "h = f(x)"
    assert again("h += f(x)") == "h = h + f(x)"
    assert again("self.loss = f(x)") == "f(x)"
    assert again("a, b = f(x)") == "a, b = f(x)"
    assert again("outs.append(h)") == "outs.append(h)"
    for text in ("optimizer.step()", "print(x)", "x.div_(2)", "return f(x)", "raise f(x)", "del x", "import os"):
        assert again(text) is None, text
    for text in ("x = next(batches)", "while f(x): x = g(x)", "h = yield x", "for x in loader(): h = f(x)", "x = input()"):
        assert again(text) is None, text
    assert again("for t in range(3): h = f(h); optimizer.step()") == "for t in range(3):\n    h = f(h)\n    pass"


def test_the_statements_of_this_round_of_the_loops_are_found():
    import ast

    def function():
        a = 1
        for i in range(2):
            b = a + i
            if i == 1:
                c = b  # noqa: F841
                return [ast.unparse(s) for s in statements_before(scenes()[0])]
            d = b  # noqa: F841

    found = function()
    assert found[:3] == ["a = 1", "b = a + i", "c = b"]
    assert "d = b" not in found
