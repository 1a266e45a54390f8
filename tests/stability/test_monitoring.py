"""Monitors: right names, hooks gone, NaN counted, spikes and large norms told, written out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from latent_drift.errors import NumericalError
from latent_drift.stability import (
    ActivationMonitor,
    StabilityMonitor,
    analyze_gradient_flow,
    assert_finite,
    assert_in_range,
    assert_normalized,
    assertions,
    check_tensor,
    check_tensor_health,
    gradient_histograms,
)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def test_every_layer_is_reported_under_its_own_name_where_a_closure_reports_the_last() -> None:
    model, x = _model(), torch.randn(16, 4)
    wrong: dict[str, float] = {}
    handles = []
    for name, module in model.named_children():
        handles.append(module.register_forward_hook(lambda m, i, o: wrong.__setitem__(name, o.std().item())))  # noqa: B023
    model(x)
    for handle in handles:
        handle.remove()
    assert list(wrong) == ["2"]  # negative control
    with ActivationMonitor(model) as monitor:
        output = model(x)
    hidden = model[0](x)
    assert list(monitor.stats) == ["0", "1", "2"]
    assert monitor.stats["0"]["mean"] == pytest.approx(hidden.mean().item(), abs=1e-6)
    assert monitor.stats["2"]["std"] == pytest.approx(output.std().item(), rel=1e-5)
    assert {"mean", "std", "min", "max", "has_nan", "has_inf"} <= set(monitor.stats["0"])
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_are_gone_after_an_exception_and_registering_twice_adds_nothing() -> None:
    model = _model()
    with pytest.raises(RuntimeError), ActivationMonitor(model) as monitor:
        model(torch.randn(2, 5))
    assert not any(m._forward_hooks for m in model.modules())
    monitor.register_hooks(model)
    monitor.register_hooks(model)
    assert len(model[0]._forward_hooks) == 1
    monitor.remove_hooks()
    with pytest.raises(RuntimeError):
        ActivationMonitor()(model, torch.randn(2, 5))
    assert not any(m._forward_hooks for m in model.modules())
    assert not list(monitor.children())


def test_dead_units_nan_and_denormals_are_seen() -> None:
    model = _model()
    with torch.no_grad():
        model[0].bias[:4] = -100
    with ActivationMonitor(model) as monitor:
        model(torch.randn(32, 4))
    assert monitor.stats["1"]["dead_fraction"] == pytest.approx(0.5)
    with ActivationMonitor(nn.Sequential(nn.Identity())) as monitor:
        monitor.reset()
    identity = nn.Identity()
    with ActivationMonitor(identity) as monitor:
        identity(torch.tensor([[math.nan, 1.0], [1e-40, math.inf]]))
    row = monitor.stats[""]
    assert (row["has_nan"], row["has_inf"], row["denormal_fraction"], row["max"]) == (True, True, 0.25, 1.0)


def test_outputs_are_not_changed_by_watching() -> None:
    model, x = _model(), torch.randn(3, 4)
    expected = model(x)
    with ActivationMonitor(model):
        assert torch.equal(model(x), expected)


def test_monitor_counts_warns_and_summarises() -> None:
    monitor = StabilityMonitor(raise_on_nan=False)
    for _ in range(20):
        assert monitor.check_loss(torch.tensor(1.0))
        monitor.step_update()
    monitor.check_loss(50.0)
    assert monitor.warnings[-1]["kind"] == "loss_spike"
    assert not monitor.check_loss(math.nan)
    assert not monitor.check_loss(math.inf)
    model = _model()
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    stats = monitor.log_gradient_stats(model)
    assert list(stats) == ["step", "max_grad", "mean_grad", "min_grad"]
    assert stats["max_grad"] == pytest.approx(100 * math.sqrt(32))
    assert monitor.warnings[-1]["kind"] == "gradient_norm"
    assert list(monitor.log_param_stats(model)) == ["step", "mean_param_mean", "mean_param_std"]
    assert monitor.summary() == {
        "total_steps": 20,
        "nan_count": 1,
        "inf_count": 1,
        "loss_mean": pytest.approx(70 / 21),
        "grad_norm_max": pytest.approx(100 * math.sqrt(32 + 8 + 24 + 3)),
    }
    assert "0.weight" in monitor.table()
    other = StabilityMonitor()
    other.load_state_dict(monitor.state_dict())
    assert other.summary() == monitor.summary()


def test_monitor_raises_by_default_and_names_the_layer() -> None:
    monitor, model = StabilityMonitor(), _model()
    with pytest.raises(NumericalError, match="the loss is nan at step 0"):
        monitor.check_loss(torch.tensor(math.nan))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[2].weight.grad[0, 0] = math.nan
    with pytest.raises(NumericalError, match=r"gradients of 2\.weight"):
        monitor.log_gradient_stats(model)
    assert monitor.nan_count == 2


def test_update_ratios_and_lines_of_strict_json_and_tensorboard(tmp_path: Path) -> None:
    class Writer:
        tags: list[str] = []  # noqa: RUF012

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.tags.append(tag)

    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = StabilityMonitor(log_interval=2, raise_on_nan=False, jsonl=tmp_path / "run" / "monitor.jsonl", tensorboard=Writer())
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        monitor.check_loss(loss)
        monitor.log_gradient_stats(model)
        with monitor.watch_update(model):
            optimizer.step()
        monitor.step_update()
    monitor.check_loss(math.nan)
    lines = [json.loads(line, parse_constant=lambda c: pytest.fail(c)) for line in (tmp_path / "run" / "monitor.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    ratio = 0.1 * monitor.layer_grad_norms["0.weight"] / model[0].weight.norm().item()
    assert 0.01 * ratio < lines[-1]["update_ratio"]["0.weight"] < 100 * ratio
    assert "stability/loss" in Writer.tags


def test_a_real_tensorboard_folder_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    monitor = StabilityMonitor(log_interval=1, tensorboard=tmp_path)
    monitor.check_loss(1.0)
    monitor.step_update()
    monitor._writer.close()
    assert list(tmp_path.glob("events*"))


def test_histograms_survive_nan_where_tensorboard_raises(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path))
    with pytest.raises(ValueError, match="histogram is empty"):
        writer.add_histogram("x", torch.full((3,), math.nan), 0)  # negative control
    model = _model()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].weight.grad.fill_(math.nan)
    counts = gradient_histograms(model, writer, 0)
    writer.close()
    assert counts["0.weight"] == 32
    assert counts["2.weight"] == 0


def test_health_of_a_tensor_in_numbers() -> None:
    health = check_tensor_health(torch.tensor([1.0, math.nan, 3.0, math.inf]), "w")
    assert list(health) == ["name", "shape", "dtype", "device", "has_nan", "has_inf", "min", "max", "mean", "std"]
    assert (health["min"], health["max"], health["mean"], health["std"]) == (1.0, 3.0, 2.0, pytest.approx(math.sqrt(2)))
    nothing = check_tensor(torch.empty(0))
    assert nothing["mean"] is None
    assert check_tensor(torch.full((2,), 60000.0, dtype=torch.float16))["mean"] == 60000
    assert check_tensor(torch.eye(2).to_sparse())["max"] == 1
    assert check_tensor(torch.tensor([3 + 4j]))["max"] == 4
    assert check_tensor(torch.tensor([1, 2]))["mean"] == 1.5


def test_gradient_flow_names_what_stands_out() -> None:
    model = _model()
    model(torch.randn(2, 4)).sum().backward()
    model[0].bias.grad.zero_()
    model[2].weight.grad.mul_(1e7)
    model[2].bias.grad = None
    flow = analyze_gradient_flow(model)
    assert flow.vanishing == ["0.bias"]
    assert flow.exploding == ["2.weight"]
    assert flow.without_gradient == ["2.bias"]
    model[0].weight.grad[0, 0] = math.nan
    assert analyze_gradient_flow(model).nonfinite == ["0.weight"]
    assert not analyze_gradient_flow(nn.Linear(1, 1))


def test_assertions_say_name_place_and_statistics_and_switch_off() -> None:
    bad = torch.tensor([[1.0, 2.0], [math.nan, 3.0]])
    with pytest.raises(NumericalError, match=r"latents is not finite.*1 NaN.*first at \(1, 0\)"):
        assert_finite(bad, "latents")
    with pytest.raises(NumericalError, match=r"p leaves \[0, 1\].*first at \(0, 1\)"):
        assert_in_range(torch.tensor([[0.0, 2.0]]), 0, 1, "p")
    with pytest.raises(NumericalError, match="leaves"):
        assert_in_range(torch.tensor([math.nan]), 0, 1)
    with pytest.raises(NumericalError, match="not normalised"):
        assert_normalized(torch.tensor([[0.5, 0.4]]))
    with pytest.raises(NumericalError, match="not normalised"):
        assert_normalized(torch.tensor([1.5, -0.5]))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert_normalized(torch.softmax(torch.randn(50, 1000), -1).to(dtype))
    assert_normalized(torch.nn.functional.normalize(torch.randn(5, 9)), p=2.0)
    with assertions(False):
        assert assert_finite(bad) is bad
        assert_in_range(bad, 0, 1)
    torch._dynamo.reset()
    compiled = torch.compile(lambda v: assert_finite(v) * 2, fullgraph=True, backend="eager")
    assert compiled(bad)[0, 0] == 2


def test_assertions_that_are_off_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> bool:
        raise AssertionError("read from the device")

    monkeypatch.setattr(torch.Tensor, "__bool__", read)
    monkeypatch.setattr(torch.Tensor, "item", read)
    with assertions(False):
        assert_finite(torch.tensor([math.nan]))
        assert_in_range(torch.tensor([math.nan]), 0, 1)
        assert_normalized(torch.tensor([math.nan]))
    with pytest.raises(AssertionError):
        assert_finite(torch.tensor([1.0]))  # negative control: on, it reads


def test_the_distribution_of_every_layers_weights_is_kept_and_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]))
    monitor = StabilityMonitor(log_interval=1, jsonl=tmp_path / "log.jsonl")
    result = monitor.log_param_stats(model)
    assert monitor.layer_weights["1.weight"] == pytest.approx(
        {"mean": 4.0, "std": model[1].weight.detach().std(correction=0).item(), "min": 1.0, "max": 9.0}
    )
    means = [p.detach().mean().item() for p in model.parameters()]
    assert result["mean_param_mean"] == pytest.approx(sum(means) / 3)
    monitor.step_update()
    (line,) = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["layer_weight"]["1.weight"]["max"] == 9.0
    written: dict[str, float] = {}

    class Writer:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written[tag] = value

    monitor = StabilityMonitor(log_interval=1, tensorboard=Writer())
    monitor.log_param_stats(model)
    monitor.step_update()
    assert written["stability/layer_weight/1.weight/min"] == 1.0
