"""The guarded step, the loops around it, the tester and its command."""

from __future__ import annotations

import json
import math
import sys
from collections import UserDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.cli import main
from latent_drift.config.active import using
from latent_drift.errors import GiveUpError, NumericalError, UsageError
from latent_drift.stability import (
    DynamicLossScaler,
    GradientFlow,
    StabilityMonitor,
    StabilityTester,
    Subject,
    plot_activation_statistics,
    plot_gradient_flow,
    plot_spectra,
    stable_training_step,
    train_rnn_stable,
    train_with_stability,
)
from latent_drift.stability.calling import map_tensors


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def _data(n: int = 6) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=g), torch.randint(3, (8,), generator=g)) for _ in range(n)]


class _OwnLoss(nn.Module):
    """Needs its labels and returns (loss, stats), as both models of this package do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor, weight: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.inner(x)
        return weight * F.cross_entropy(logits, labels), {"logits": logits.detach()}


@pytest.mark.parametrize("loss_fn", [None, F.cross_entropy])
def test_the_step_runs_models_that_need_labels_and_return_tuples(loss_fn: object) -> None:
    model = _OwnLoss()
    x, y = _data(1)[0]
    with pytest.raises(TypeError):
        F.cross_entropy(model(x), y)  # negative control: the audited step calls model(batch)
    before = model.inner.weight.clone()
    result = stable_training_step(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn)  # type: ignore[arg-type]
    assert list(result) == ["loss", "grad_norm", "grad_clipped", "skipped"]
    assert not torch.equal(model.inner.weight, before)


def test_bad_losses_and_gradients_are_skipped_whole() -> None:
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    x, y = _data(1)[0]
    stable_training_step(model, x, y, optimizer, F.cross_entropy)
    kept = [p.detach().clone() for p in model.parameters()]
    for bad in (lambda o, t: F.cross_entropy(o, t) * math.nan, lambda o, t: F.cross_entropy(o, t) + torch.sqrt((o * 0).sum())):
        result = stable_training_step(model, x, y, optimizer, bad)
        assert result["skipped"]
        assert all(torch.equal(p, k) for p, k in zip(model.parameters(), kept, strict=True))
    monitor = StabilityMonitor()
    with pytest.raises(NumericalError):
        stable_training_step(model, x * math.nan, y, optimizer, F.cross_entropy, monitor=monitor)
    assert stable_training_step(model, x * 1e4, y, optimizer, F.cross_entropy, max_grad_norm=0.1)["grad_clipped"]


def test_clipping_comes_after_unscaling() -> None:
    x, y = _data(1)[0]
    updates = []
    for scaler in (None, DynamicLossScaler(2.0**14, device="cpu"), torch.amp.GradScaler("cpu", 2.0**14)):
        model = _model().eval()
        before = model[0].weight.detach().clone()
        result = stable_training_step(model, x, y, torch.optim.SGD(model.parameters(), lr=1.0), F.cross_entropy, scaler, max_grad_norm=1e3)
        assert not result["grad_clipped"]  # clipped before unscaling it would have been
        updates.append(model[0].weight.detach() - before)
    assert torch.allclose(updates[0], updates[1], rtol=1e-4, atol=1e-7)
    assert torch.allclose(updates[0], updates[2], rtol=1e-4, atol=1e-7)


def test_a_skipped_step_of_a_scaler_backs_off() -> None:
    model, scaler = _model(), DynamicLossScaler(4.0, device="cpu")
    x, y = _data(1)[0]
    result = stable_training_step(
        model, x, y, torch.optim.SGD(model.parameters(), lr=1.0), lambda o, t: F.cross_entropy(o, t) + torch.sqrt((o * 0).sum()), scaler
    )
    assert result["skipped"]
    assert scaler.get_scale() == 2.0


def _loop(checkpoint: Path, epochs: int) -> tuple[nn.Module, dict[str, object]]:
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(40, 4), torch.randint(3, (40,))), batch_size=8, shuffle=True)
    return model, train_with_stability(model, loader, epochs, optimizer, F.cross_entropy, scheduler=scheduler, checkpoint=checkpoint)


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = _loop(tmp_path / "whole.pt", 4)
    _loop(tmp_path / "parts.pt", 2)
    torch.manual_seed(99)  # whatever happened in between
    resumed, result = _loop(tmp_path / "parts.pt", 4)
    assert result["start_epoch"] == 2
    assert result["summary"]["total_steps"] == 20
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_the_loop_skips_bad_batches_and_gives_up_on_bad_runs() -> None:
    data = _data()
    data[2] = (data[2][0] * math.nan, data[2][1])
    model = _model()
    result = train_with_stability(model, data, epochs=3)
    assert [row["skipped"] for row in result["epochs"]] == [1, 1, 1]
    assert result["epochs"][-1]["loss"] < result["epochs"][0]["loss"]
    assert all(p.isfinite().all() for p in model.parameters())
    with using(gradient={"max_consecutive_skips": 5}), pytest.raises(GiveUpError, match="5 steps in a row"):
        train_with_stability(_model(), [(x * math.nan, y) for x, y in _data()], epochs=2)
    plateau_model = _model()
    optimizer = torch.optim.SGD(plateau_model.parameters(), lr=0.1)
    train_with_stability(plateau_model, _data(), 2, optimizer, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


class _Net(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.GRU, outputs: int = 1) -> None:
        super().__init__()
        self.rnn, self.head = kind(2, 8, batch_first=True), nn.Linear(8, outputs)

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        y, state = self.rnn(x, state)
        return self.head(y), state


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_training_truncates_carries_and_survives_nan(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = _Net(kind)
    x = torch.randn(4, 90, 2)
    data = [(x, x.cumsum(1)[..., :1] / 10)] * 8
    result = train_rnn_stable(net, data, torch.optim.Adam(net.parameters(), lr=0.01), window=30)
    assert result["windows"] == 24
    assert sum(result["losses"][-3:]) < sum(result["losses"][:3])
    bad = x.clone()
    bad[0, 40] = math.nan
    result = train_rnn_stable(net, [(bad, data[0][1]), data[0]], torch.optim.SGD(net.parameters(), lr=0.01), window=30, carry_state=True)
    assert result["skipped"] == 1  # the state starts anew: the NaN poisons one window only
    assert all(p.isfinite().all() for p in net.parameters())
    per_sequence = train_rnn_stable(_Net(kind, 3), [(x, torch.tensor([0, 1, 2, 0]))], torch.optim.SGD(net.parameters(), lr=0.01), window=30)
    assert per_sequence["windows"] == 1
    with pytest.raises(UsageError, match=r"\(output, state\)"):
        train_rnn_stable(_NoState(), [(x, x)], torch.optim.SGD(net.parameters(), lr=0.1))


class _NoState(nn.Module):
    def forward(self, x: Tensor, state: object = None) -> Tensor:
        return x


# --- tester and command -------------------------------------------------------------------------------------


class _Broken(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.kind == "raises":
            raise RuntimeError("the real reason")
        if self.kind == "overflows":
            return torch.exp(y * 1e3)
        if self.kind == "detaches":
            return y.detach().requires_grad_() * 1
        return y / (x.abs().sum(-1, keepdim=True))  # 0/0 for zero inputs


def test_the_five_categories_pass_for_a_sound_model_and_say_why_not_for_others() -> None:
    batch = _data(1)[0]
    report = StabilityTester(_model(), batch, F.cross_entropy, steps=4).run()
    assert report.passed, report.table()
    assert report.exit_status == 0
    assert list(json.loads(report.json())["categories"]) == ["initialisation", "forward", "gradient flow", "mixed precision", "multi-step training"]
    assert {c.name for c in report.checks if c.category == "forward"} == {"tiny", "huge", "zero", "mixed", "empty batch", "single sample"}
    for kind, category, text in (
        ("raises", "forward", "RuntimeError: the real reason"),
        ("divides", "forward", "not finite"),
        ("detaches", "gradient flow", "no parameter has a gradient"),
    ):
        report = StabilityTester(_Broken(kind), batch, F.cross_entropy, steps=2).run()
        assert report.exit_status == 1
        assert any(text in c.detail and not c.passed for c in report.checks if c.category == category), report.table()
    with pytest.raises(UsageError, match="needs a batch"):
        StabilityTester(_model())
    with pytest.raises(UsageError, match="the factory must return"):
        Subject.from_factory(3)


def test_the_audits_static_tests_have_their_keys_and_report_exceptions() -> None:
    torch.manual_seed(0)
    results = StabilityTester.test_extreme_inputs(_Broken("divides"), (5, 4))
    assert set(results["zero"]) == {"success", "has_nan", "has_inf", "error"}
    assert results["zero"]["has_nan"] or results["zero"]["has_inf"]
    assert not results["success"]
    assert results["normal"]["success"]
    raised = StabilityTester.test_extreme_inputs(_Broken("raises"), (5, 4))
    assert raised["tiny"]["error"] == "RuntimeError: the real reason"
    assert "the real reason" in raised["error"]
    flow = StabilityTester.test_gradient_flow(_model(), (5, 4))
    assert set(flow["0.weight"]) == {"has_nan", "has_inf", "norm", "max", "min"}
    assert flow["norm"] == pytest.approx(math.hypot(*(row["norm"] for row in flow.values())))
    with pytest.raises(UsageError, match="does not depend"):
        StabilityTester.test_gradient_flow(nn.ReLU(), (2, 2))


class _Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., _Run]:
    """Runs `latent-drift stability-test` in this process, as its console script does."""

    def run(*arguments: str, cwd: Path | None = None) -> _Run:
        monkeypatch.setattr(sys, "argv", ["latent-drift", "stability-test", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        if cwd is not None:
            monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit) as leaving:
            main()
        return _Run(int(leaving.value.code or 0), *capsys.readouterr())

    return run


_FACTORY = """
import torch
def good():
    return torch.nn.Linear(4, 3), (torch.randn(8, 4), torch.randint(3, (8,))), torch.nn.functional.cross_entropy
def bad():
    model = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(model.weight, float("nan"))
    return model, (torch.randn(8, 4), torch.randint(3, (8,))), torch.nn.functional.cross_entropy
def wrong():
    return 3
"""


def test_the_command_on_a_users_model(tmp_path: Path, command: Callable[..., _Run]) -> None:
    (tmp_path / "users_model_for_test.py").write_text(_FACTORY)
    good = command("--model", "users_model_for_test:good", "--steps", "3", "--json", "report.json", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "15 of 15 passed" in good.stdout
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is True
    bad = command("--model", "users_model_for_test:bad", "--steps", "2", "--json", "-", cwd=tmp_path)
    assert bad.returncode == 1
    document = json.loads(bad.stdout)
    assert not document["categories"]["initialisation"]["passed"]
    for arguments, text in (
        (("--model", "users_model_for_test:wrong"), "the factory must return"),
        (("--model", "users_model_for_test:none"), "no callable 'none'"),
        (("--model", "nowhere:f"), "no module named 'nowhere'"),
        (("--model", "tree"), "must be ode, raccoon or package.module:factory"),
        (("--model", "users_model_for_test:good", "--device", "tpu"), "must be cpu, cuda"),
    ):
        refused = command(*arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert text in refused.stderr
        assert "Traceback" not in refused.stderr
    if not torch.cuda.is_available():
        refused = command("--model", "users_model_for_test:good", "--device", "cuda", cwd=tmp_path)
        assert refused.returncode == 2
        assert "has no cuda device; it has cpu" in refused.stderr


@pytest.mark.parametrize("model", ["raccoon", "ode"])
def test_the_command_passes_on_the_packages_own_models(model: str, command: Callable[..., _Run]) -> None:
    run = command("--model", model, "--steps", "3")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "15 of 15 passed" in run.stdout


# --- plots -------------------------------------------------------------------------------------------------


def test_plots_are_written_at_a_size_that_keeps_100_layers_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    flow = {f"blocks.{i}.linear.weight": {"mean": 10.0 ** (-i / 20), "max": 10.0 ** (1 - i / 20)} for i in range(100)}
    flow["blocks.7.linear.weight"] = {"mean": math.nan, "max": math.nan}
    flow["blocks.9.linear.weight"] = {"mean": 0.0, "max": 0.0}
    stats = {
        name: {"mean": 0.1, "std": 1.0, "has_nan": i == 3, "has_inf": False, "zero_fraction": 0.5, "dead_fraction": i / 100}
        for i, name in enumerate(flow)
    }
    for name, figure in (
        ("flow.png", plot_gradient_flow(flow, tmp_path / "flow.png")),
        ("stats.svg", plot_activation_statistics(stats, tmp_path / "stats.svg")),
        ("spectra.png", plot_spectra({name: [2.0, 1.0, 0.1] for name in flow}, tmp_path / "spectra.png")),
    ):
        assert (tmp_path / name).stat().st_size > 10_000
        assert figure.get_figheight() < 12  # one screen: 100 layers stand in columns
        figure.draw_without_rendering()
        columns = [axis for axis in figure.axes if axis.get_yticklabels()]
        assert [label.get_text() for axis in columns for label in axis.get_yticklabels()] == list(flow)
        for axis in columns:
            boxes = [label.get_window_extent() for label in axis.get_yticklabels()]
            assert all(abs(a.y0 - b.y0) >= 0.9 * a.height for a, b in pairwise(boxes))  # no label on another
            edges = [other.get_window_extent().x1 for other in figure.axes]
            left = max((edge for edge in edges if edge < axis.get_window_extent().x0), default=0)
            assert min(box.x0 for box in boxes) >= left  # nor on the column before
    with pytest.raises(UsageError, match=r"\.png, \.svg or \.pdf"):
        plot_gradient_flow(flow, tmp_path / "flow.bmp")


def test_the_gradient_flow_plot_says_what_has_no_mark_and_names_outstanding_layers_in_red() -> None:
    pytest.importorskip("matplotlib")
    rows = {f"{i}.weight": {"norm": 1.0, "mean": 0.1, "max": 1.0} for i in range(5)}
    rows["5.weight"] = {"norm": 1e-9, "mean": 1e-10, "max": 1e-9}
    rows["6.weight"] = {"norm": math.inf, "mean": math.inf, "max": math.inf}
    figure = GradientFlow(rows, ["7.weight"]).plot()
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["not finite", "no gradient"]
    red = [label.get_text() for label in axis.get_yticklabels() if label.get_color() != "black"]
    assert red == ["5.weight", "6.weight"]


def test_the_monitor_sees_the_norm_before_clipping_so_that_it_can_warn() -> None:
    model, monitor = _model(), StabilityMonitor()
    x, y = _data(1)[0]
    result = stable_training_step(
        model, x * 1e5, y, torch.optim.SGD(model.parameters(), lr=1e-9), F.cross_entropy, monitor=monitor, max_grad_norm=1.0
    )
    assert monitor.grad_norms[-1] == pytest.approx(result["grad_norm"], rel=1e-4)
    assert [w["kind"] for w in monitor.warnings] == ["gradient_norm"]


class _Pair(NamedTuple):
    x: Tensor
    extra: dict[str, Tensor]


def test_nested_batches_keep_their_types_named_tuples_among_them() -> None:
    value = [_Pair(torch.ones(2), {"a": torch.zeros(1)}), (3, "text"), UserDict({"b": torch.ones(1)})]
    doubled = map_tensors(lambda t: t + 1, value)
    assert isinstance(doubled[0], _Pair)
    assert doubled[0].x.tolist() == [2.0, 2.0]
    assert doubled[0].extra["a"].item() == 1
    assert doubled[1] == (3, "text")
    assert doubled[2]["b"].item() == 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x: Tensor, extra: dict[str, Tensor]) -> Tensor:
            return (self.inner(x) - extra["target"]).square().mean()

    batches = [_Pair(torch.randn(4, 3), {"target": torch.randn(4, 1)})] * 2
    with pytest.raises(TypeError):
        type(batches[0])(v for v in batches[0])  # negative control: a named tuple is not built from a generator
    result = train_with_stability(Net(), batches, epochs=1)
    assert result["epochs"][0]["steps"] == 2
