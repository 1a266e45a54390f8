"""An optimizer that the script itself defines: what goes wrong in its update has a line there, also where a larger eps mends it."""

from pathlib import Path

import torch
from torch import nn

import instrument

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()
BIRTH = next(i for i, line in enumerate(LINES, start=1) if line.endswith("# birth"))


class CentredRMSprop(torch.optim.Optimizer):
    """The variance of the gradient as a difference of two averages, which cancellation makes negative."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3, "alpha": 0.9, "eps": 1e-12})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["square"], state["mean"] = torch.zeros_like(p), torch.zeros_like(p)
                state["square"].mul_(group["alpha"]).addcmul_(p.grad, p.grad, value=1 - group["alpha"])
                state["mean"].mul_(group["alpha"]).add_(p.grad, alpha=1 - group["alpha"])
                scale = torch.sqrt(state["square"] - state["mean"] ** 2 + group["eps"])  # birth
                p.addcdiv_(p.grad, scale, value=-group["lr"])


def _train():
    torch.manual_seed(0)
    weights = nn.Parameter(torch.randn(200))
    optimizer = CentredRMSprop([weights])
    slope = torch.rand(200) * 0.05
    for _ in range(200):
        optimizer.zero_grad()
        (slope * weights).sum().backward()
        optimizer.step()
    return weights


def test_plain_it_ends_in_nan():
    assert torch.isnan(_train()).any()


def test_the_line_in_the_update_is_named_and_the_update_done_again():
    with instrument.stable() as run:
        weights = _train()
    assert torch.isfinite(weights).all()
    assert (run.first_cause.file, run.first_cause.line) == (__file__, BIRTH)
    assert any(event.code == "NS301" and event.action == "repaired" for event in run.events)
    assert run.tally.skipped == 0
