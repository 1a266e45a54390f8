"""The success figures of the toolbox, as recorded runs (`pytest -m slow`)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latent_drift import (
    NUM_LOG_CLASSES,
    DeterministicLatentODE,
    LogDataset,
    RaccoonLogClassifier,
    SyntheticTargetDataset,
    log_vocab_size,
    vocab_size,
)
from latent_drift.numerics.gradients import global_norm, gradients_of
from latent_drift.stability import DynamicLossScaler, StabilityMonitor, stable_training_step
from tests.stability.variance_through_depth import measure, predicted_spread


def _ode(slices: int = 64) -> DeterministicLatentODE:
    torch.manual_seed(0)
    return DeterministicLatentODE(vocab_size, latent_size=64, hidden_size=128, embed_size=64, num_slices=slices)


def _ode_batch(rows: int) -> Tensor:
    data = SyntheticTargetDataset(rows)
    return torch.stack([data[i] for i in range(rows)])


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_steps_of_the_ode_model_without_nan_and_norms_under_ten() -> None:
    model, monitor = _ode(), StabilityMonitor(raise_on_nan=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    data = _ode_batch(4096)
    for step in range(10_000):
        rows = torch.randint(len(data), (16,))
        result = stable_training_step(model, data[rows], None, optimizer, None, monitor=monitor, max_grad_norm=1.0)
        assert not result["skipped"], step
        assert global_norm(gradients_of(model)) < 10
    assert (monitor.nan_count, monitor.inf_count) == (0, 0)
    assert all(p.isfinite().all() for p in model.parameters())


def _accuracy(dtype: torch.dtype, steps: int = 1500) -> float:
    torch.manual_seed(0)
    model = RaccoonLogClassifier(log_vocab_size, NUM_LOG_CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = DynamicLossScaler(device="cpu") if dtype == torch.float16 else None
    items = [LogDataset(4096)[i] for i in range(4096)]
    tokens, labels = torch.stack([t for t, _ in items]), torch.as_tensor([int(c) for _, c in items])
    for _ in range(steps):
        rows = torch.randint(3584, (32,))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            result = stable_training_step(model, tokens[rows], labels[rows], optimizer, None, scaler)
        assert math.isfinite(result["loss"])
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return float(model(tokens[3584:], labels[3584:])[1]["accuracy"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_half_precision_is_within_five_percent_of_float32_accuracy() -> None:
    exact = _accuracy(torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert _accuracy(dtype) >= 0.95 * exact


@pytest.mark.parametrize("rows", [1, 2, 256])
def test_the_ode_model_steps_at_any_batch_size(rows: int) -> None:
    model = _ode(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = _ode_batch(rows)
    results = [stable_training_step(model, batch, None, optimizer) for _ in range(2)]
    assert not any(r["skipped"] for r in results)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_training_is_stable_at_batch_sizes_1_to_256(rows: int) -> None:
    model = _ode()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        result = stable_training_step(model, _ode_batch(rows), None, optimizer)
        assert not result["skipped"]
        losses.append(result["loss"])
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("scheme", "activation"), [("orthogonal", "linear"), *[("lsuv", a) for a in ("linear", "relu", "tanh", "silu", "gelu")]])
def test_variance_stays_within_ten_percent_through_100_layers_at_width_512(scheme: str, activation: str) -> None:
    assert measure(scheme, activation)["activation_mean"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("scheme", "activation"), [("he", "relu"), ("he", "linear"), ("xavier", "linear")])
def test_he_and_xavier_stay_within_the_spread_that_theory_predicts(scheme: str, activation: str) -> None:
    row = measure(scheme, activation)
    assert abs(row["activation_mean"] - 1) < 3 * predicted_spread(scheme, activation, 512, 100) / math.sqrt(16)
