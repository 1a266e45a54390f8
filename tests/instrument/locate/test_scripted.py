"""A TorchScript program is one operation to whoever watches: the line that calls it is named, and its result mended."""

import pytest
import torch
from torch import nn

import instrument

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Focal(nn.Module):
    def forward(self, p, y):
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def train(program, steps=12):
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for _ in range(steps):
        x = torch.randn(32, 4) * 50
        loss = program(torch.sigmoid(net(x)), (x[:, :1] > 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), net.weight.detach()


@pytest.mark.parametrize("form", ["module", "function"])
def test_the_call_is_named_and_its_result_mended(form):
    program = torch.jit.script(Focal()) if form == "module" else torch.jit.trace(Focal(), (torch.rand(3, 1), torch.rand(3, 1)))
    loss, weight = train(program)
    assert not torch.isfinite(weight).all(), "negative control"
    call, method = vars(torch.ScriptFunction)["__call__"], vars(torch.ScriptMethod)["__call__"]
    with instrument.stable(profile="train") as run:
        loss, weight = train(program)
    assert torch.isfinite(weight).all()
    assert loss == loss
    assert run.first_cause.source == "loss = program(torch.sigmoid(net(x)), (x[:, :1] > 0).float())"
    assert vars(torch.ScriptFunction)["__call__"] is call
    assert vars(torch.ScriptMethod)["__call__"] is method
