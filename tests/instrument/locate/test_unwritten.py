"""Memory that nothing was written to holds anything, a NaN too: handing it out, looking at it or filling it is no birth, and reading it is one."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import instrument

STEPS = 9
FAULTY = (2, 3, 5)


@pytest.fixture(autouse=True)
def unwritten_memory_holds_nan():
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def line_of(text):
    """The number of the one line of this file that ends in the comment."""
    lines = [i for i, line in enumerate(Path(__file__).read_text(encoding="utf-8").splitlines(), start=1) if line.endswith(f"  # {text}")]
    assert len(lines) == 1
    return lines[0]


def gumbel(z):
    return -torch.empty_like(z).exponential_().log()


def copied(z):
    rows = torch.empty(z.shape)
    rows.copy_(z.detach())
    return rows


def row_by_row(z):
    rows = z.new_empty(z.shape)
    for row in rows:
        row.copy_(torch.ones(3))
    return rows


def items(z):
    rows = torch.empty(z.shape)
    for i in range(len(rows)):
        rows[i] = z[i].detach()
    return rows


def given_as_out(z):
    rows = torch.empty(z.shape)
    torch.mul(z.detach(), 2.0, out=rows)
    return rows


def rows_given_as_out(z):
    rows = torch.empty(z.shape)
    for i in range(len(rows)):
        torch.mul(z.detach()[i], 2.0, out=rows[i])
    return rows


def resized(z):
    return torch.empty(0).resize_(z.shape).normal_()


def viewed(z):
    return torch.empty(z.numel()).view(z.shape).normal_()


def train(noise):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with instrument.stable() as run:
        for step in range(STEPS):
            z = model(torch.randn(8, 4))
            z = z + 0.01 * noise(z)
            if step in FAULTY:
                z = z * math.nan  # birth
            optimizer.zero_grad()
            z.square().mean().backward()
            optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    return run


@pytest.mark.parametrize("noise", [gumbel, copied, row_by_row, items, given_as_out, rows_given_as_out, resized, viewed])
def test_filling_memory_is_no_birth(noise):
    assert torch.empty(3).isnan().all(), "the memory of this test holds NaN before it is filled"
    run = train(noise)
    assert run.first_cause.line == line_of("birth")
    mended = [e for e in run.events if e.action == "bounded"]
    assert mended
    assert {e.line for e in mended} == {line_of("birth")}, "nothing but the fault is mended"


def test_reading_it_is_a_birth_at_the_line_that_asked_for_it():
    def forgotten(z):
        return torch.empty(z.shape)  # asked for

    run = train(forgotten)
    assert run.first_cause.line == line_of("asked for")
    assert "nothing was written to" in run.first_cause.message


def two_halves(z):
    # One line, so that all of it is mended with the fault that is in it.
    return [rows := torch.empty(8, 3), rows[:4].copy_(z[:4] + z[:4] * math.nan), rows[4:].fill_(2.0), rows][-1]


def test_a_view_that_is_mended_is_still_a_view():
    """Once the line is being mended: what is written through a view of unwritten memory arrives."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    with instrument.stable() as run:
        for _ in range(STEPS):
            z = model(torch.randn(8, 4))
            kept.append(two_halves(z.detach()))
            z = z + kept[-1]
            optimizer.zero_grad()
            z.square().mean().backward()
            optimizer.step()
    assert any(e.action == "bounded" for e in run.events), "the line was mended"
    assert all(rows[4:].eq(2).all() for rows in kept)
    assert kept[-1].isfinite().all()
