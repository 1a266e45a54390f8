"""Updates that no optimizer's step makes: a parameter that they spoil is put back, and the line that made the bad number is named."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import instrument
from instrument.events import read_jsonl

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()
BIRTH = next(i for i, line in enumerate(LINES, start=1) if line.endswith("# birth"))


def normalised_update(p):
    p.data -= 0.1 * p.grad / p.grad.norm()  # birth


def train(zero_at, steps=6, profile="train"):
    p = nn.Parameter(torch.ones(3))
    losses = []
    with instrument.stable(profile=profile) as run:
        for index in range(steps):
            p.grad = None
            loss = (p * (0.0 if index == zero_at else 1.0)).pow(2).sum()
            loss.backward()
            losses.append(loss.item())
            normalised_update(p)
    return p, losses, run


@pytest.mark.parametrize("zero_at", [0, 2, 5])  # the first update, one in the middle, the last
def test_a_spoilt_parameter_is_put_back_and_the_line_is_named(zero_at):
    p, _, run = train(zero_at)
    assert torch.isfinite(p).all()
    assert (run.first_cause.file, run.first_cause.line) == (__file__, BIRTH), run.summary()
    assert any(e.action == "rolled-back" for e in run.events)


def test_observing_alters_nothing():
    p, _, run = train(2, profile="observe")
    assert torch.isnan(p).all(), "negative control"
    assert not any(e.repaired for e in run.events)


def test_what_is_put_back_is_what_was_before_the_update():
    good, _, healthy = train(None, steps=5)
    p, _, _ = train(5)
    assert torch.equal(p, good)
    assert healthy.events == ()


def test_infinities_of_healthy_steps_put_nothing_back():
    p = nn.Parameter(torch.ones(3))
    with instrument.stable(profile="guard") as run:
        for _ in range(4):
            p.grad = None
            mask = torch.log(torch.tensor([0.0, 1.0, 1.0]))
            ((p + mask).softmax(0) * p).sum().backward()
            p.data -= 0.1 * p.grad
    assert run.events == ()


def test_functional_training_by_autograd_grad():
    p = torch.ones(3, requires_grad=True)
    with instrument.stable(profile="train") as run:
        for index in range(5):
            (g,) = torch.autograd.grad((p * (index != 1)).pow(2).sum(), p)
            with torch.no_grad():
                p.copy_(p - 0.1 * g / g.norm())
    assert torch.isfinite(p).all()
    assert run.tally.steps == 5


def test_a_last_update_by_hand_is_at_no_line_of_whoever_ran_the_script(tmp_path):
    """After the script's end an installed package (the command line's) is all that is on the stack."""
    script = tmp_path / "by_hand.py"
    script.write_text(
        "import torch\nw = torch.ones(3, requires_grad=True)\nfor step in range(3):\n    loss = w.square().sum()\n    loss.backward()\n"
        "    with torch.no_grad():\n        w -= 0.1 * w.grad / (step != 2)\n        w.grad.zero_()\n"
    )
    command = [sys.executable, "-m", "instrument", "run", "--report", str(tmp_path / "report"), str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    events = read_jsonl(tmp_path / "report" / "events.jsonl")
    assert "NS508" in {event.code for event in events}
    assert {event.file for event in events} <= {str(script), None}
    assert f"first cause: {script}:7" in result.stderr


def test_a_number_that_an_update_by_hand_made_is_the_first_cause_of_it():
    torch.manual_seed(0)
    w = torch.randn(6, 2, requires_grad=True)
    seen = torch.zeros_like(w)
    with instrument.stable(profile="train") as run:
        for _ in range(6):
            (gradient,) = torch.autograd.grad(w[:4].exp().sum(), w)
            seen += gradient * gradient
            with torch.no_grad():
                w -= 0.1 * gradient / seen.sqrt()  # the last two rows: 0 over 0
            assert run.tally.steps < 2 or torch.isfinite(w).all(), "from the second step on the line itself is guarded"
    assert run.first_cause.source.startswith("w -= 0.1 * gradient / seen.sqrt()")
    assert torch.isfinite(w).all()
