"""On a GPU, where one is present: guarded training is the plain one to the bit, nothing waits for the device, and a recorded step is left alone."""

import pytest
import torch
from torch import nn

import instrument

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is present")

OPTIMIZERS = {
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
    "capturable": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, capturable=True),
    "foreach": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, foreach=True),
}


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 4)).cuda()


def _train(build, steps=6, *, scaled=False):
    model = _model()
    optimizer = build(model.parameters())
    scaler = torch.amp.GradScaler("cuda", enabled=scaled)
    x, y = torch.randn(32, 8).cuda(), torch.randint(4, (32,)).cuda()
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16, enabled=scaled):
            loss = nn.functional.cross_entropy(model(x).softmax(-1), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "float16 with a loss scale"])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_healthy_training_is_the_plain_one(build, scaled):
    plain = _train(build, scaled=scaled)
    with instrument.stable(profile="guard") as run:
        guarded = _train(build, scaled=scaled)
    assert all(map(torch.equal, plain, guarded))
    assert run.events == ()


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_bad_gradient_does_not_reach_the_parameters(build):
    model = _model()
    optimizer = build(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    with instrument.stable(profile="guard") as run:
        (model(torch.randn(4, 8).cuda()).sum() * float("nan")).backward()
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    assert run.tally.skipped == 1


def test_no_guarded_operation_waits_for_the_device():
    x = torch.rand(64, 64, device="cuda", requires_grad=True)
    with instrument.stable(profile="guard") as run:
        for _ in range(2):  # the first calls may load kernels
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                y = torch.softmax(x, -1).log() + torch.exp(-x) / (x + 1.0) + (x + 1.0).sqrt() + x.norm(dim=-1, keepdim=True)
                nn.functional.mse_loss(y, x.detach()).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert run.events == ()


def test_a_step_that_a_graph_records_is_left_to_it():
    model = _model()
    optimizer = OPTIMIZERS["capturable"](model.parameters())
    x = torch.randn(32, 8, device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimizer.step()

    with instrument.stable(profile="guard") as run:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        before = [p.detach().clone() for p in model.parameters()]
        graph.replay()
        torch.cuda.synchronize()
    assert not all(map(torch.equal, before, model.parameters()))
    assert all(p.isfinite().all() for p in model.parameters())
    assert run.events == ()
