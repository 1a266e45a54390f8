"""Gradients sharded over two processes: norms are those of the whole, and every process does the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from latent_drift.errors import NumericalError
from latent_drift.numerics.gradients import global_norm
from latent_drift.stability import (
    StabilityMonitor,
    adaptive_gradient_clipping,
    agc,
    analyze_gradient_flow,
    check_gradients,
    clip_gradients,
    normalize_gradients,
)

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")

_WHOLE = torch.arange(1.0, 13.0).reshape(4, 3)


def _model(mesh: Any, bad: float | None = None) -> nn.Module:
    """A sharded, a replicated and an ordinary parameter; `bad` goes into the second process's shard only."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    model = nn.Module()
    for name, placement in (("sharded", Shard(0)), ("replicated", Replicate())):
        parameter = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [placement]))
        gradient = _WHOLE.clone()
        if bad is not None and name == "sharded":
            gradient[3, 1] = bad
        parameter.grad = distribute_tensor(gradient, mesh, [placement])
        model.register_parameter(name, parameter)
    model.plain = nn.Parameter(torch.ones(2))
    model.plain.grad = torch.tensor([3.0, 4.0])
    return model


def _whole(model: nn.Module) -> list[float]:
    """Every gradient element, gathered."""
    values: list[float] = []
    for parameter in model.parameters():
        gradient: Any = parameter.grad
        full: Tensor = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        values += full.double().flatten().tolist()
    return values


def _run(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    model = _model(mesh)
    found: dict[str, Any] = {"local": global_norm([p.grad for p in model.parameters() if p.grad is not None])}
    found["flow"] = analyze_gradient_flow(model).total_norm
    monitor = StabilityMonitor()
    monitor.log_gradient_stats(model)
    found["monitor"] = monitor.grad_norms[-1]
    found["adaptive"] = adaptive_gradient_clipping(model)["grad_norm_before"]
    found["clip"] = clip_gradients(model, 1.0)
    found["clipped"] = _whole(model)
    model = _model(mesh)
    found["normalize"] = normalize_gradients(model, 5.0)["grad_norm_after"]
    model = _model(mesh)
    found["agc"] = agc(model, 0.5)["grad_norm_before"]
    for name, bad in (("nan", math.nan), ("inf", math.inf)):
        model = _model(mesh, bad)
        before = _whole(model)
        found[name] = clip_gradients(model, 1.0)
        found[f"{name} untouched"] = torch.equal(torch.tensor(_whole(model)), torch.tensor(before)) or bad != bad
        found[f"{name} checked"] = check_gradients(model, raise_on_nan=False)
        try:
            check_gradients(model)
        except NumericalError as error:
            found[f"{name} raised"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_run, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


_EXACT = math.hypot(*(_WHOLE.flatten().tolist() * 2), 3.0, 4.0)


@pytest.mark.xdist_group("sharded gradients")
def test_norms_are_those_of_the_whole_on_every_process(found: list[dict[str, Any]]) -> None:
    assert found[0]["local"] != pytest.approx(found[1]["local"], rel=0.1)  # negative control: each sees its own shards
    for rank in found:
        for name in ("flow", "monitor", "adaptive", "agc"):
            assert rank[name] == pytest.approx(_EXACT, rel=1e-6), name
        assert rank["clip"]["grad_norm_before"] == pytest.approx(_EXACT, rel=1e-6)
        assert rank["normalize"] == pytest.approx(5.0, rel=1e-5)
        assert math.hypot(*rank["clipped"]) == pytest.approx(1.0, rel=1e-5)
        assert rank["clipped"] == pytest.approx([v / _EXACT for v in (*_WHOLE.flatten().tolist() * 2, 3.0, 4.0)], rel=1e-5)


@pytest.mark.xdist_group("sharded gradients")
@pytest.mark.parametrize("name", ["nan", "inf"])
def test_a_bad_shard_is_known_to_every_process(found: list[dict[str, Any]], name: str) -> None:
    for rank in found:
        assert str(rank[name]["grad_norm_before"]) == name
        assert not rank[name]["clipped"]
        assert rank[f"{name} untouched"]
        assert rank[f"{name} checked"]["params_affected"] == ["sharded"]
        assert rank[f"{name} checked"][f"has_{name}"]
        assert "sharded" in rank[f"{name} raised"]
    assert [rank[f"{name} checked"][f"num_{name}"] for rank in found] == [0, 1]
