"""In a graph that a Python backend of torch.compile runs, the line that is named is the script's, not one of the generated code."""

from pathlib import Path

import torch
from torch import nn

import instrument

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()
BIRTH = next(i for i, line in enumerate(LINES, start=1) if line.endswith("# birth"))


@torch.compile(backend="eager")
def log_likelihood(p, y):
    scaled = p * 2.0
    return (torch.log(scaled) * y).sum()  # birth


def test_the_line_inside_a_compiled_function():
    p = nn.Parameter(torch.tensor([0.0, 1.0]))
    with instrument.stable(profile="guard") as run:
        optimizer = torch.optim.SGD([p], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (-log_likelihood(p, torch.ones(2))).backward()
            optimizer.step()
    assert torch.isfinite(p).all()
    cause = run.first_cause
    assert (cause.file, cause.line, cause.function) == (__file__, BIRTH, "log_likelihood")
    assert "torch.log(scaled)" in cause.source
    assert not any((e.file or "").startswith("<") for e in run.events)


def test_the_line_in_a_module_that_fx_generated():
    class Net(nn.Module):
        def forward(self, x):
            return torch.log(x)

    traced = torch.fx.symbolic_trace(Net())
    p = nn.Parameter(torch.zeros(2))
    with instrument.stable(profile="guard") as run:
        traced(p).sum().backward()
    # symbolic_trace keeps no source lines: then it is the line that called the module.
    assert run.first_cause.file == __file__
