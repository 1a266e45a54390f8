"""Loss scaling and autocast: divided once, skipped steps told, the config's float32 set."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from latent_drift.config.active import using
from latent_drift.errors import UsageError
from latent_drift.stability import DynamicLossScaler, MixedPrecisionHelper, stable_backward


def _setup(scale: float = 8.0) -> tuple[nn.Parameter, torch.optim.Optimizer, DynamicLossScaler]:
    w = nn.Parameter(torch.ones(1))
    return w, torch.optim.SGD([w], lr=1.0), DynamicLossScaler(scale, device="cpu", growth_interval=2)


def test_gradients_are_divided_once_however_often_one_asks() -> None:
    w, optimizer, scaler = _setup()
    plain = torch.amp.GradScaler("cpu", 8.0)
    plain.scale((w * 3).sum()).backward()
    plain.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        plain.unscale_(optimizer)  # negative control
    w.grad = None
    scaler.scale_loss((w * 3).sum()).backward()
    for _ in range(3):
        scaler.unscale_gradients(optimizer)
    assert w.grad.item() == 3
    scaler.step(optimizer)
    assert w.item() == -2
    assert not scaler.step_skipped


def test_a_skipped_step_holds_the_scheduler_backs_off_and_is_told() -> None:
    w, optimizer, scaler = _setup()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scaler.scale_loss((w * math.inf).sum()).backward()
    scaler.step(optimizer, scheduler)
    scaler.update()
    assert (scaler.step_skipped, scaler.steps_skipped, scaler.get_scale(), w.item()) == (True, 1, 4.0, 1.0)
    assert scheduler.get_last_lr() == [1.0]
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale_loss(w.sum()).backward()
        scaler.step(optimizer, scheduler)
        scaler.update()
    assert scaler.get_scale() == 8.0  # it grows again: the audited scaler never moved
    assert scheduler.get_last_lr() == [0.25]


def test_the_scale_has_a_floor_and_its_state_is_saved() -> None:
    w, optimizer, scaler = _setup(2.0)
    for _ in range(5):
        optimizer.zero_grad()
        scaler.scale_loss((w * math.nan).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1.0
    other = DynamicLossScaler(device="cpu")
    other.load_state_dict(scaler.state_dict())
    assert (other.get_scale(), other.steps_skipped) == (1.0, 5)
    with using(amp={"init_scale": 64.0}):
        assert DynamicLossScaler.from_config("cpu").get_scale() == 64.0
    w.grad = None
    fresh = _setup()[2]
    with pytest.raises(UsageError, match="no gradient was found"):
        fresh.step(optimizer)


def test_autocast_runs_the_configs_set_in_float32() -> None:
    x = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).sum().dtype == torch.bfloat16  # negative control
    with MixedPrecisionHelper.autocast("cpu", torch.bfloat16):
        product = x @ x
        assert product.dtype == torch.bfloat16
        assert product.sum().dtype == torch.float32
        assert torch.nn.functional.layer_norm(product, (4,)).dtype == torch.float32
        assert torch.exp(product).dtype == torch.float32
    with MixedPrecisionHelper.autocast("cpu", torch.bfloat16, enabled=False):
        assert (x @ x).dtype == torch.float32


def test_prepare_for_autocast_keeps_ties() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).half()
    model[1].weight = model[0].weight
    MixedPrecisionHelper.prepare_for_autocast(model)
    assert model[0].weight is model[1].weight
    assert model[0].weight.dtype == torch.float32


def test_stable_backward_looks_first() -> None:
    w = nn.Parameter(torch.ones(1))
    (w * math.nan).sum().backward()
    assert w.grad.isnan()  # negative control
    w.grad = torch.tensor([7.0])
    assert not stable_backward((w * math.nan).sum())
    assert w.grad.item() == 7
    w.grad = None
    assert MixedPrecisionHelper.stable_backward((w * 2).sum(), DynamicLossScaler(4.0, device="cpu"))
    assert w.grad.item() == 8
    with pytest.raises(UsageError, match="scalar"):
        stable_backward(w.expand(2) * 1)
    with pytest.raises(UsageError, match="no graph"):
        stable_backward(torch.tensor(1.0))
