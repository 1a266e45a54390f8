"""torch's own tools around a training loop: compiled models, checkpoints, averaged weights, mixed precision; and torch-optimizer's optimizers."""

import copy

import pytest
import torch
import torch_optimizer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import instrument
from tests.instrument.frameworks.scenario import FAULTY_BATCH, batches, digest, poison


class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 16), nn.Sequential(nn.GELU(), nn.Linear(16, 16), nn.GELU()), nn.Linear(16, 1)
        self.how = how

    def forward(self, x):
        h = self.first(x)
        if self.how.startswith("checkpoint"):
            h = checkpoint(self.middle, h, use_reentrant=self.how.endswith("reentrant"))
        else:
            h = self.middle(h)
        return self.last(h)


def train(how, poisoned, optimizer_class=torch.optim.AdamW):
    """Returns everything that training left: parameters, and averaged ones."""
    torch.manual_seed(0)
    net = Net(how)
    model = torch.compile(net, backend="aot_eager") if how == "compiled" else net
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9)) if how == "ema" else None
    optimizer = optimizer_class(net.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if how == "amp-float16" else None
    half = {"amp-float16": torch.float16, "amp-bfloat16": torch.bfloat16}.get(how)
    for index, (x, y) in enumerate(batches()):
        x = poison(x) if poisoned and index == FAULTY_BATCH else x
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
            loss = nn.functional.mse_loss(model(x).float(), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        if averaged is not None:
            averaged.update_parameters(net)
    return torch.cat([digest(net), digest(averaged)]) if averaged is not None else digest(net)


TOOLS = ["plain", "compiled", "checkpoint", "checkpoint-reentrant", "ema", "amp-bfloat16", "amp-float16"]


@pytest.fixture(autouse=True)
def _no_leftovers():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("how", TOOLS)
def test_tool_trains_the_same_when_healthy_and_survives_a_bad_batch(how):
    plain, broken = train(how, poisoned=False), train(how, poisoned=True)
    assert torch.equal(plain, train(how, poisoned=False)), "the script itself must give the same twice, or nothing is shown"
    # A GradScaler skips the bad step by itself: what is shown there is that we do not get in its way.
    assert bool(broken.isfinite().all()) == (how == "amp-float16")
    with instrument.stable(profile="guard") as run:
        healthy = train(how, poisoned=False)
    assert torch.equal(plain, healthy)
    assert run.events == ()
    with instrument.stable(profile="guard") as run:
        saved = train(how, poisoned=True)
    assert saved.isfinite().all()
    assert not torch.equal(saved, plain)
    if how == "amp-float16":
        assert torch.equal(saved, broken), "the step that the scaler leaves out is left out once"
        assert run.tally.skipped == 0
    else:
        assert run.tally.skipped == 1
        assert "NS506" in {event.code for event in run.events}


@pytest.mark.parametrize("name", ["AdaBelief", "DiffGrad", "Lamb", "NovoGrad", "RAdam", "SGDP", "Yogi"])
def test_an_optimizer_of_torch_optimizer_survives_a_bad_batch(name):
    cls = getattr(torch_optimizer, name)
    assert not train("plain", poisoned=True, optimizer_class=cls).isfinite().all()
    with instrument.stable(profile="guard") as run:
        saved = train("plain", poisoned=True, optimizer_class=cls)
    assert saved.isfinite().all()
    assert run.tally.skipped == 1


class Shell(torch.optim.Optimizer):
    """As accelerate's: holds another optimizer and steps it every second time only."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    @property
    def param_groups(self):
        return self.inner.param_groups

    def step(self, closure=None):
        self.calls += 1
        if self.calls % 2 == 0:
            self.inner.step(closure)


def test_a_shell_that_waits_while_gradients_accumulate_is_not_judged_before_its_time():
    def accumulate():
        parameter = nn.Parameter(torch.zeros(2))
        optimizer = Shell(torch.optim.SGD([parameter], lr=1.0))
        for gradient in (torch.tensor([30.0, 0.0]), torch.tensor([-30.0, 0.5])):
            (parameter * gradient).sum().backward()
            optimizer.step()
        return parameter.detach()

    expected = copy.copy(accumulate())
    with instrument.stable(profile="train") as run:
        guarded = accumulate()
    assert torch.equal(guarded, expected), "clipped half way, the sum would have been another"
    assert run.tally.steps == 1
    assert run.events == ()
