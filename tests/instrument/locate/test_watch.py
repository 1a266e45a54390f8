"""What no guard saw is found by watching the next steps: the line, forward or backward, and what came in bad."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import instrument


def line_of(text):
    """The number of the one line of this file that holds the text (the marker's own definition aside)."""
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    lines = [i for i, line in enumerate(source, start=1) if f"# {text}" in line]
    assert len(lines) == 1
    return lines[0]


def train(forward, steps=5, parameter=None, profile="guard"):
    parameter = nn.Parameter(torch.ones(3)) if parameter is None else parameter
    with instrument.stable(profile=profile) as run:
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        for index in range(steps):
            optimizer.zero_grad()
            forward(parameter, index).sum().backward()
            optimizer.step()
    assert torch.isfinite(parameter).all()
    return run


def overflow_in_a_product(p, index):
    big = torch.full((3,), 1e30)
    scaled = p * big
    return scaled * big * 0.0  # birth: product


def matmul_overflow(p, index):
    a = (p.new_full((3, 3), 6e4) * p).half()
    return (a @ a).float()  # birth: matmul


class Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, g):
        return g * math.nan


def own_backward(p, index):
    return Squash.apply(p)  # birth: own


def data_with_a_hole(p, index):
    batch = torch.tensor([1.0, math.nan, 2.0])  # birth: data
    return p * batch


HOLE = torch.tensor([[1.0, 2.0, 3.0], [1.0, math.nan, 2.0]])


def data_from_outside(p, index):
    return (p * HOLE).sum(0)  # birth: outside


def mask_times_infinity(p, index):
    mask = torch.tensor([0.0, 1.0, 0.0])
    return p + mask * -math.inf  # birth: mask


apply_kept = Squash.apply


def own_backward_under_another_name(p, index):
    return apply_kept(p) * 2.0  # birth: kept


CASES = {
    "product": (overflow_in_a_product, "NS805"),
    "matmul": (matmul_overflow, "NS805"),
    "own": (own_backward, "NS805"),
    "kept": (own_backward_under_another_name, "NS805"),
    "data": (data_with_a_hole, "NS803"),
    "outside": (data_from_outside, "NS803"),
    "mask": (mask_times_infinity, "NS805"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_line_of_birth_is_named(case):
    forward, code = CASES[case]
    run = train(forward)
    births = [e for e in run.events if e.code == code]
    assert births, run.summary()
    assert (births[0].file, births[0].line) == (__file__, line_of(f"birth: {case}"))
    assert births[0].source


def test_a_healthy_script_is_never_watched():
    run = train(lambda p, index: p**2)
    assert run.search.watch.steps == 0
    assert run.events == ()


@pytest.mark.parametrize("case", ["product", "matmul", "own", "kept", "mask"])
def test_the_line_is_mended_from_then_on(case):
    run = train(CASES[case][0], steps=6)
    assert run.tally.skipped_in_a_row == 0, run.summary()
    assert any(e.action in ("bounded", "neutralised") and e.line == line_of(f"birth: {case}") for e in run.events)
    assert torch._C._len_torch_function_stack() == 0


def test_watching_ends_when_the_origin_is_known_and_within_its_budget():
    run = train(overflow_in_a_product, steps=8)
    assert run.search.watch.steps == 1
    assert not run.search.watch.is_on
    assert torch._C._len_torch_function_stack() == 0
    assert vars(torch.autograd.Function)["apply"].__func__.__module__ == "torch.autograd.function"


def test_deliberate_infinities_of_healthy_steps_are_not_blamed():
    def forward(p, index):
        mask = torch.log(torch.tensor([0.0, 1.0, 1.0]))
        big = torch.full((3,), 1e30 if index >= 2 else 1.0)
        return (p + mask).softmax(0) * (p * big * big * 0.0)  # birth: after healthy steps

    run = train(forward, steps=6)
    assert {e.line for e in run.events if e.code == "NS805"} == {line_of("birth: after healthy steps")}
    assert not any(e.code == "NS205" for e in run.events)


def test_a_nan_that_a_loss_function_mends_is_traced_to_where_it_came_from():
    net = nn.Linear(3, 2)

    def forward(p, index):
        x = torch.ones(4, 3)
        x[1, 2] = math.nan  # birth: before the loss
        out = net(x * p)
        return nn.functional.cross_entropy(out, torch.zeros(4, dtype=torch.long))

    run = train(forward)
    assert run.first_cause.code == "NS803", run.summary()
    assert run.first_cause.line == line_of("birth: before the loss")


def test_what_overflows_after_a_line_that_was_bounded_is_mended_too():
    def forward(p, index):
        gate = torch.exp(p * 200.0)
        return (gate * gate) * 1e-30

    run = train(forward, steps=12, profile="train")
    assert run.tally.skipped_in_a_row == 0, run.summary()
    assert run.tally.skipped < 6


def test_functional_training_is_mended_as_well():
    def loss_of(w):
        return (torch.exp(w * 100.0) @ torch.full((3,), 1e30)).log()

    w = torch.ones(3, requires_grad=True)
    losses = []
    with instrument.stable(profile="train") as run:
        for _ in range(8):
            loss = loss_of(w)
            (g,) = torch.autograd.grad(loss, w)
            with torch.no_grad():
                w -= 0.01 * g
            losses.append(loss.item())
    assert not math.isfinite(losses[0]), "negative control"
    assert math.isfinite(losses[-1]), run.summary()
    assert run.tally.steps == 8


def test_the_backward_of_a_hand_written_function_is_named_where_its_forward_result_was_masked():
    class Log1mExp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.log(1 - torch.exp(-x))

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g / (torch.exp(x) - 1)  # birth: in backward

    masked = train(lambda p, index: torch.where(p > 9, Log1mExp.apply(p * 0), p))
    assert masked.first_cause.line == line_of("birth: in backward"), masked.summary()
