"""Clipping and its kin: every trap of torch's and the audit's forms, and what ours do instead."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latent_drift.config.active import using
from latent_drift.errors import NumericalError, UsageError
from latent_drift.stability import (
    GradientHistory,
    GradientManager,
    adaptive_clip,
    adaptive_gradient_clipping,
    agc,
    check_gradients,
    clip_gradients,
    normalize_gradients,
)


def _parameters(*gradients: list[float]) -> list[nn.Parameter]:
    made = []
    for values in gradients:
        p = nn.Parameter(torch.zeros(len(values)))
        p.grad = torch.tensor(values)
        made.append(p)
    return made


def _audited_clip(parameters: object, max_norm: float = 1.0) -> dict[str, object]:
    """The audited utility's form: it counts the parameters it was given first."""
    before = math.sqrt(sum(p.grad.norm() ** 2 for p in parameters if p.grad is not None))  # type: ignore[attr-defined]
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)  # type: ignore[arg-type]
    return {"grad_norm_before": before, "clipped": before > max_norm}


@pytest.mark.parametrize("spelling", ["inf", math.inf])
def test_the_largest_magnitude_is_a_norm_by_either_spelling(spelling: Any) -> None:
    parameters = _parameters([3.0, -4.0])
    outcome = clip_gradients(parameters, max_norm=2.0, norm_type=spelling)
    assert (outcome["grad_norm_before"], outcome["grad_norm_after"]) == (4.0, pytest.approx(2.0))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_generator_is_clipped_where_the_audited_form_exhausts_it_and_says_it_clipped() -> None:
    p = _parameters([30.0, 40.0])
    assert _audited_clip(q for q in p)["clipped"]
    assert p[0].grad.norm() == 50  # negative control: it did not
    result = clip_gradients((q for q in p), max_norm=5.0)
    assert result == {"grad_norm_before": 50.0, "grad_norm_after": pytest.approx(5.0), "num_params_with_grad": 1, "clipped": True}
    assert p[0].grad.norm().item() == pytest.approx(5.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_gradient_leaves_the_good_ones_alone(bad: float) -> None:
    p = _parameters([1.0, 2.0], [bad, 3.0])
    torch.nn.utils.clip_grad_norm_(p, 1.0)
    assert p[0].grad.isnan().all() if math.isnan(bad) else (p[0].grad == 0).all()  # negative control
    p = _parameters([1.0, 2.0], [bad, 3.0])
    result = clip_gradients(p, max_norm=1.0)
    assert p[0].grad.tolist() == [1.0, 2.0]
    assert not result["clipped"]
    assert not math.isfinite(result["grad_norm_before"])


def test_the_config_may_zero_or_raise_instead() -> None:
    with using(gradient={"nonfinite": "zero"}):
        p = _parameters([3.0, 4.0], [math.nan, 0.0])
        result = clip_gradients(p, max_norm=1.0)
        assert result["clipped"]
        assert p[0].grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)
        assert p[1].grad.tolist() == [0.0, 0.0]
    with using(gradient={"nonfinite": "raise"}), pytest.raises(NumericalError, match="norm is nan"):
        clip_gradients(_parameters([math.nan]))


def test_module_tensor_list_default_norm_and_values() -> None:
    layer = nn.Linear(2, 1)
    for q in layer.parameters():
        q.grad = torch.full_like(q, 100.0)
    assert clip_gradients(layer)["grad_norm_after"] == pytest.approx(1.0, rel=1e-4)  # the config's default
    p = _parameters([100.0, -3.0])
    result = clip_gradients(p[0], max_value=10.0)
    assert p[0].grad.tolist() == [10.0, -3.0]
    assert result["clipped"]
    assert clip_gradients([nn.Parameter(torch.zeros(1))])["num_params_with_grad"] == 0
    with pytest.raises(UsageError, match="positive"):
        clip_gradients(p, max_norm=0.0)


def test_gradients_of_mixed_dtype_layout_and_kind() -> None:
    half, double, cplx, sparse = (nn.Parameter(torch.zeros(2, dtype=d)) for d in (torch.float16, torch.float64, torch.complex64, torch.float32))
    half.grad = torch.tensor([300.0, 400.0], dtype=torch.float16)
    double.grad = torch.tensor([0.0, 1.0], dtype=torch.float64)
    cplx.grad = torch.tensor([3 + 4j, 0])
    sparse.grad = torch.tensor([0.0, 2.0]).to_sparse()
    exact = math.sqrt(500**2 + 1 + 25 + 4)
    result = clip_gradients([half, double, cplx, sparse], max_norm=5.0)
    assert result["grad_norm_before"] == pytest.approx(exact, rel=1e-6)
    assert double.grad[1].item() == pytest.approx(5 / exact, rel=1e-4)
    assert sparse.grad.is_sparse


def test_norms_that_overflow_when_squared_are_still_clipped() -> None:
    p = _parameters([3e30, 4e30])
    assert (p[0].grad * p[0].grad).sum().isinf()  # negative control
    assert clip_gradients(p, max_norm=1.0)["grad_norm_before"] == pytest.approx(5e30, rel=1e-5)
    assert p[0].grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)


def test_check_gradients_counts_and_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    for q in model.parameters():
        q.grad = torch.ones_like(q)
    clean = check_gradients(model)
    assert clean == {"has_nan": False, "has_inf": False, "num_nan": 0, "num_inf": 0, "params_affected": []}
    model[1].weight.grad[0, 0] = math.inf
    model[0].bias.grad[:] = math.nan
    found = GradientManager.check_gradients(model, raise_on_nan=False)
    assert found == {"has_nan": True, "has_inf": True, "num_nan": 2, "num_inf": 1, "params_affected": ["0.bias", "1.weight"]}
    with pytest.raises(NumericalError, match=r"0\.bias, 1\.weight"):
        check_gradients(model)
    assert check_gradients((q for q in model.parameters()), raise_on_nan=False)["params_affected"] == ["1", "2"]


def _audited_percentile(parameters: list[nn.Parameter], percentile: float = 95.0) -> None:
    """The audited form: the threshold is a percentile of this step's own per-tensor norms."""
    norms = torch.stack([p.grad.norm() for p in parameters])
    torch.nn.utils.clip_grad_norm_(parameters, float(torch.quantile(norms, percentile / 100)))


def test_percentile_is_over_the_runs_history_not_one_steps_tensors() -> None:
    healthy = _parameters(*[[1.0 + i / 1000] for i in range(100)])
    _audited_percentile(healthy)
    assert healthy[0].grad.item() < 0.2  # negative control: a hundred healthy gradients are shrunk
    exploded = _parameters(*[[1e6] for _ in range(100)])
    _audited_percentile(exploded)
    assert exploded[0].grad.item() > 9e4  # negative control: the threshold explodes with them

    p = _parameters(*[[1.0] for _ in range(100)])
    for _ in range(30):
        for q in p:
            q.grad = torch.tensor([1.0])
        result = adaptive_gradient_clipping(p)
        assert p[0].grad.item() == pytest.approx(1.0)
    assert result["threshold"] == pytest.approx(10.0)
    for q in p:
        q.grad = torch.tensor([1e6])
    result = adaptive_gradient_clipping(p)
    assert result["clipped"]
    assert p[0].grad.item() == pytest.approx(1.0, rel=1e-4)
    assert {"threshold", "max_norm", "mean_norm", "percentile", "skipped", "reason"} <= set(result)


def test_nan_never_enters_the_history_and_zscore_and_ceiling_work() -> None:
    history = GradientHistory(100)
    p = _parameters([1.0])
    for i in range(40):
        p[0].grad = torch.tensor([math.nan if i % 4 == 0 else 1.0 + 0.01 * (i % 3)])
        outcome = adaptive_gradient_clipping(p, history=history, zscore=3.0)
    assert len(history) == 30
    assert all(map(math.isfinite, history.norms))
    p[0].grad = torch.tensor([50.0])
    outcome = adaptive_gradient_clipping(p, history=history, zscore=3.0)
    assert outcome["clipped"]
    assert outcome["threshold"] < 1.1
    p[0].grad = torch.tensor([50.0])
    assert adaptive_gradient_clipping(p, history=GradientHistory(), max_norm=2.0)["grad_norm_after"] == pytest.approx(2.0, rel=1e-4)
    assert adaptive_clip([nn.Parameter(torch.zeros(1))])["skipped"]


def test_two_runs_have_histories_of_their_own() -> None:
    a, b = _parameters([1.0]), _parameters([1000.0])
    for _ in range(25):
        adaptive_clip(a)
        b[0].grad = torch.tensor([1000.0])
        adaptive_clip(b)
    assert b[0].grad.item() == pytest.approx(1000.0)


def test_agc_bounds_each_unit_by_its_weight() -> None:
    w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0], [30.0, 40.0]]))
    w.grad = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.3, 0.4]])
    agc([w], clipping=0.01, eps=1e-3)
    norms = w.grad.norm(dim=1).tolist()
    assert norms == pytest.approx([0.05, 1e-5, 0.5], rel=1e-4)


def test_normalize_gradients_globally_and_each() -> None:
    p = _parameters([3e-30, 4e-30], [0.0, 0.0])
    assert normalize_gradients(p)["grad_norm_after"] == pytest.approx(1.0)
    p = _parameters([3.0, 4.0], [0.03, 0.04])
    normalize_gradients(p, 2.0, per_parameter=True)
    assert [q.grad.norm().item() for q in p] == pytest.approx([2.0, 2.0])
    p = _parameters([math.nan, 1.0])
    assert not normalize_gradients(p)["clipped"]
    half = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    half.grad = torch.tensor([3e-7, 4e-7], dtype=torch.float16)
    normalize_gradients([half])
    assert half.grad.float().norm().item() == pytest.approx(1.0, rel=0.1)


def _tied_gradient(x: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model(x).square().sum().backward()
    return model


def test_a_tied_gradient_counts_once() -> None:
    model = _tied_gradient(torch.ones(1, 4))
    norm = model[0].weight.grad.norm().item()
    assert clip_gradients([model[0].weight, model[1].weight], max_norm=1e-3)["grad_norm_before"] == pytest.approx(norm)
