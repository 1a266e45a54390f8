"""The rules of family 5, run: what a clipped, unscaled step does, and which steps the two rules see through helpers and branches."""

from __future__ import annotations

import pytest
import torch

from patches.engine import check, fix
from patches.rules import RULES
from patches.settings import Settings
from patches.source import Source
from tests.patches.execution import namespace
from tests.patches.fixture_files import ROOT

SETTINGS = Settings(unsafe=True, select=("NS5",))


def _rules(code: str) -> list:
    return [rule for rule in RULES if rule.code == code]


def _lines(code: str, text: str) -> list[int]:
    return [d.line for d in check(Source(text, "train.py", SETTINGS), _rules(code))]


@pytest.mark.parametrize("call", ["norm_of_the_step", "norm_of_the_branching_step"])
def test_the_unscaled_clip_is_as_large_as_it_says(call):
    """A gradient of norm 10 clipped to 1 gives a step of norm 1; clipped while scaled by 1024 it gives 1/1024."""
    folder = ROOT / "NS502"
    x = torch.tensor([[10.0, 0.0, 0.0]])
    before = namespace((folder / "branches.before.py").read_text(), "before")[call](x)
    after = namespace((folder / "branches.after.py").read_text(), "after")[call](x)
    assert before.item() == pytest.approx(1 / 1024, rel=1e-3), "the negative control"
    assert after.item() == pytest.approx(1.0, rel=1e-5)


SCALED_LOOP = """
import torch

def step(model, optimizer, scaler, loss):
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
"""


def test_a_gradient_that_is_unscaled_already_is_not_unscaled_twice():
    """GradScaler raises on a second unscale_."""
    text, applied = fix(SCALED_LOOP, "train.py", _rules("NS501"), SETTINGS)
    assert applied
    assert text.count("unscale_") == 1
    assert text.index("unscale_") < text.index("clip_grad_norm_") < text.index("scaler.step")


STEPS = {
    "a helper that steps": ("def run(loss):\n    loss.backward()\n    go()\n\ndef go():\n    optimizer.step()\n", [6]),
    "a helper that clips and steps": (
        "def run(loss):\n    loss.backward()\n    go()\n\ndef go():\n    torch.nn.utils.clip_grad_norm_(p, 1.0)\n    optimizer.step()\n",
        [],
    ),
    "a method that clips": (
        "class T:\n    def run(self, loss):\n        loss.backward()\n        self.after()\n        self.optimizer.step()\n"
        "    def after(self):\n        torch.nn.utils.clip_grad_value_(self.p, 1.0)\n",
        [],
    ),
    "two optimizers": ("def run(loss):\n    loss.backward()\n    opt_d.step()\n    opt_g.step()\n", [3, 4]),
    "accumulation": (
        "def run(losses):\n    for i, loss in enumerate(losses):\n        loss.backward()\n        if i % 4 == 3:\n            optimizer.step()\n",
        [5],
    ),
    "the other arm": ("def run(loss, first):\n    if first:\n        loss.backward()\n    else:\n        optimizer.step()\n", []),
    "a scheduler": ("def run(loss):\n    loss.backward()\n    lr_scheduler.step()\n", []),
    "an environment": ("def run(loss):\n    loss.backward()\n    env.step(1)\n", []),
    "a trainer's backward": ("def run(accelerator, loss):\n    accelerator.backward(loss)\n    optimizer.step()\n", []),
    "clipped twice over": ("def run(loss):\n    loss.backward()\n    for p in ps:\n        p.grad.clamp_(-1, 1)\n    optimizer.step()\n", []),
}


@pytest.mark.parametrize(("body", "expected"), STEPS.values(), ids=STEPS.keys())
def test_steps_are_seen_where_they_run(body, expected):
    assert _lines("NS501", "import torch\n" + body) == [line + 1 for line in expected]


def test_the_demo_has_one_unclipped_step():
    """Its mask and its step are what instrument reports at run time, under the codes NS401 and NS507."""
    from pathlib import Path

    import instrument.demo

    text = (Path(instrument.demo.__file__).parent / "legacy_vae.py").read_text()
    lines = text.splitlines()
    step = next(n for n, line in enumerate(lines, 1) if line.strip() == "optimizer.step()")
    assert _lines("NS501", text) == [step]
    softmax = next(n for n, line in enumerate(lines, 1) if "F.softmax(" in line)
    found = check(Source(text, "train.py", SETTINGS), _rules("NS401"))
    assert len(found) == 1
    assert softmax in found[0].firing_lines
