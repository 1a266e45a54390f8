"""Training: the schedule, what is skipped and bounded, precisions, continuing, and that it learns."""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from latent_drift.config import load
from latent_drift.errors import GiveUpError, NumericalError, UsageError
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.optimizer_step import OptimizerStep
from latent_drift.models.sequences import SyntheticTargetDataset
from latent_drift.models.train_ode import OdeStep, latent_weight_at, train_ode


def small(dtype: torch.dtype = torch.float32, **keywords: Any) -> DeterministicLatentODE:
    torch.manual_seed(0)
    return DeterministicLatentODE(30, 8, 16, 12, 8, **keywords).to(dtype)


def loader(batch_size: int = 8, size: int = 64) -> DataLoader[Tensor]:
    return DataLoader(SyntheticTargetDataset(size, seed=0), batch_size=batch_size)


class Poisoned(DeterministicLatentODE):
    """Its loss is `bad` at the calls in `when`."""

    when: tuple[int, ...] = ()
    bad = float("nan")
    calls = 0

    def forward(self, tokens: Tensor, loss_weights: Any = (1.0, 0.1, 1.0)) -> Any:
        loss, stats = super().forward(tokens, loss_weights)
        self.calls += 1
        return (loss * self.bad if self.calls - 1 in self.when else loss), stats


def poisoned(*when: int, bad: float = float("nan")) -> Poisoned:
    torch.manual_seed(0)
    model = Poisoned(30, 8, 16, 12, 8)
    model.when, model.bad = when, bad
    return model


def parameters_are_finite(model: torch.nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())


def test_weight_of_normality_warms_up_linearly_over_ten_thousand_steps() -> None:
    assert latent_weight_at(0, 0.05) == 0.0005
    assert latent_weight_at(5000, 0.05) == pytest.approx(0.02525)
    assert latent_weight_at(10_000, 0.05) == latent_weight_at(10**7, 0.05) == 0.05
    assert latent_weight_at(0, 0.0) == latent_weight_at(10_000, 0.0) == 0.0
    training = train_ode(small(), loader(), 3, "cpu", loss_weights=(1.0, 10.0, 1.0), first_step=5000, sample_every=0)
    assert [s.latent_weight for s in training.steps] == [latent_weight_at(step, 10.0) for step in (5000, 5001, 5002)]
    first = training.steps[0]
    assert first.loss == pytest.approx(first.recon + first.latent_weight * first.latent_ep + first.ode_reg, rel=1e-6)


def test_it_learns_and_says_what_it_did() -> None:
    seen: list[OdeStep] = []
    training = train_ode(small(), loader(), 50, "cpu", sample_every=25, on_step=seen.append)
    assert seen == training.steps
    assert [s.step for s in training.steps] == list(range(50))
    assert sum(s.recon for s in training.steps[-10:]) / 10 < 0.6 * training.steps[0].recon
    assert training.loss == training.steps[-1].loss
    assert training.stats == {"recon": seen[-1].recon, "latent_ep": seen[-1].latent_ep, "ode_reg": seen[-1].ode_reg}
    assert training.skipped == 0
    assert [s.step for s in training.samples] == [24, 49]
    assert training.samples[0].shared.shape == training.samples[0].own.shape == (8, 67)
    assert isinstance(training.optimizer, torch.optim.AdamW)
    assert training.optimizer.param_groups[0]["lr"] == 1e-3
    assert training.optimizer.param_groups[0]["weight_decay"] == 1e-5


def test_progress_is_logged_and_nothing_is_printed(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO, logger="latent_drift"):
        train_ode(small(), loader(), 2, "cpu", sample_every=2)
    lines = [r.getMessage() for r in caplog.records if r.name == "latent_drift.models.train_ode"]
    assert lines[0].startswith("step 1 loss ")
    assert len([line for line in lines if line.startswith("sample (")]) == 16
    assert capsys.readouterr() == ("", "")


def test_samples_do_not_disturb_the_run() -> None:
    def losses(sample_every: int) -> list[float]:
        model = small()
        torch.manual_seed(1)
        shuffled = DataLoader(SyntheticTargetDataset(24, seed=0), batch_size=8, shuffle=True)
        return [s.loss for s in train_ode(model, shuffled, 9, "cpu", sample_every=sample_every).steps]

    assert losses(0) == losses(2)


def test_two_halves_are_bitwise_one_run() -> None:
    whole, halves = small(), small()
    one_batch = loader(8, 8)
    train_ode(whole, one_batch, 8, "cpu", sample_every=0)
    first = train_ode(halves, one_batch, 4, "cpu", sample_every=0)
    train_ode(halves, one_batch, 4, "cpu", optimizer=first.optimizer, first_step=4, sample_every=0)
    for (name, a), b in zip(whole.state_dict().items(), halves.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped(bad: float) -> None:
    published = poisoned(2, bad=bad)
    train_ode(published, loader(), 4, "cpu", sample_every=0, legacy_compat=True)
    assert not parameters_are_finite(published)  # the negative control
    model = poisoned(2, 3, bad=bad)
    training = train_ode(model, loader(), 6, "cpu", sample_every=0)
    assert [s.skipped for s in training.steps] == [False, False, True, True, False, False]
    assert training.skipped == 2
    assert parameters_are_finite(model)


def test_a_skipped_step_changes_nothing_not_even_the_optimizer_or_the_schedule() -> None:
    model = poisoned(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    train_ode(model, loader(), 1, "cpu", optimizer=optimizer, scheduler=scheduler, sample_every=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    train_ode(model, loader(), 1, "cpu", optimizer=optimizer, scheduler=scheduler, sample_every=0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(optimizer.state.values(), moments, strict=True))
    assert optimizer.param_groups[0]["lr"] == 5e-4


def test_it_gives_up_after_too_many_skips_in_a_row_and_raises_when_told_to() -> None:
    limit = load(gradient={"max_consecutive_skips": 3})
    with pytest.raises(GiveUpError, match="4 steps in a row"):
        train_ode(poisoned(*range(100)), loader(), 10, "cpu", config=limit, sample_every=0)
    with pytest.raises(NumericalError, match="encoder"):
        train_ode(poisoned(0), loader(), 1, "cpu", config=load(gradient={"nonfinite": "raise"}), sample_every=0)


def test_the_loss_scale_falls_with_overflow_and_not_below_its_floor() -> None:
    config = load(amp={"init_scale": 8.0, "min_scale": 2.0})
    plain = torch.amp.GradScaler("cpu", init_scale=8.0)
    floored = torch.amp.GradScaler("cpu", init_scale=8.0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = OptimizerStep(model, optimizer, config, floored)
    scales = []
    for _ in range(5):
        assert step(model(torch.full((1, 2), float("inf"))).sum()).skipped
        scales.append(floored.get_scale())
        plain.scale(model(torch.full((1, 2), float("inf"))).sum()).backward()
        plain.step(optimizer)
        plain.update()
        optimizer.zero_grad()
    assert plain.get_scale() == 0.25  # the negative control
    assert scales == [4.0, 2.0, 2.0, 2.0, 2.0]
    assert not step(model(torch.ones(1, 2)).sum()).skipped


@pytest.mark.parametrize("lr", [1e-2, 1e-1])
def test_learning_rates_ten_and_a_hundred_times_too_high_still_learn(lr: float) -> None:
    def run(legacy_compat: bool) -> tuple[float, bool]:
        torch.manual_seed(0)
        model = DeterministicLatentODE(30, 16, 32, 16, 16)
        steps = train_ode(model, loader(8, 512), 40, "cpu", lr=lr, sample_every=0, legacy_compat=legacy_compat).steps
        return sum(s.recon for s in steps[-10:]) / 10, parameters_are_finite(model)

    if lr == 1e-1:
        plain, _ = run(legacy_compat=True)
        assert not plain < 3.4  # the negative control: worse than guessing, log 30
    recon, finite = run(legacy_compat=False)
    assert finite
    assert recon < 0.75


@cache
def recon_in_float32() -> float:
    """Where 10 steps end in plain float32."""
    return train_ode(small(), loader(), 10, "cpu", sample_every=0).steps[-1].recon


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precisions_of_the_forward_pass_end_near_float32(precision: str) -> None:
    torch.manual_seed(0)
    model = small()
    training = train_ode(model, loader(), 10, "cpu", precision=precision, sample_every=0)
    assert training.skipped == 0
    assert parameters_are_finite(model)
    assert training.steps[-1].recon == pytest.approx(recon_in_float32(), rel=0.05)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_dtype_train(dtype: torch.dtype) -> None:
    model, tokens = small(dtype), next(iter(loader()))
    if dtype == torch.float16:
        naive = small(dtype)
        optimizer = torch.optim.AdamW(naive.parameters(), lr=1e-3, weight_decay=1e-5)
        for _ in range(3):
            optimizer.zero_grad()
            naive(tokens)[0].backward()
            optimizer.step()
        assert not parameters_are_finite(naive)  # the negative control: Adam's epsilon is 0 in float16
    training = train_ode(model, loader(), 10, "cpu", sample_every=0)
    assert training.steps[-1].recon == pytest.approx(recon_in_float32(), rel=0.05)
    assert all(p.dtype == dtype for p in model.parameters())
    assert training.skipped == 0


@pytest.mark.parametrize(
    "clip",
    [
        {"kind": "none"},
        {"kind": "norm", "max_norm": 0.5, "norm_type": "inf"},
        {"kind": "value", "max_value": 0.01},
        {"kind": "agc", "clipping": 0.01},
        {"kind": "adaptive_percentile", "percentile": 50.0, "warmup": 2, "history": 10},
        {"kind": "zscore", "threshold": 1.0, "warmup": 2, "history": 10},
    ],
    ids=lambda clip: clip["kind"],
)
def test_every_clip_of_the_config_bounds_what_the_optimizer_sees(clip: dict[str, Any]) -> None:
    seen: list[list[Tensor]] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append([p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None])
            super().step()

    model = small()
    training = train_ode(model, loader(), 6, "cpu", optimizer=Spy(model.parameters(), lr=1e-3), config=load(gradient={"clip": clip}), sample_every=0)
    norms = [math.sqrt(sum(float(g.square().sum()) for g in step)) for step in seen]
    largest = max(float(g.abs().max()) for g in seen[0])
    raw = [s.norm for s in training.steps]
    if clip["kind"] == "none":
        assert norms == pytest.approx(raw, rel=1e-5)
    elif clip["kind"] == "norm":
        assert largest <= 0.5
    elif clip["kind"] == "value":
        assert largest <= 0.01
    elif clip["kind"] == "agc":
        assert norms[0] < raw[0]
    else:
        assert norms[:2] == pytest.approx(raw[:2], rel=1e-5)  # nothing known yet
        assert all(after <= before * 1.0001 for after, before in zip(norms, raw, strict=True))


@torch.no_grad()
def moved(model: torch.nn.Module, before: dict[str, Tensor], floor: float = 0.2) -> dict[str, float]:
    """Norm of each parameter's change, relative to what its norm was (`floor` at least)."""
    return {name: float((p - before[name]).norm() / before[name].norm().clamp_min(floor)) for name, p in model.named_parameters()}


def test_no_update_exceeds_its_share_of_the_parameter() -> None:
    model = torch.nn.Linear(20, 30)
    with torch.no_grad():
        model.bias.zero_()
    plain = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.ones(1, 20)).square().sum().backward()
    plain.step()
    assert moved(model, before)["weight"] > 0.5  # the negative control: a step that does not depend on the gradient's scale
    model = torch.nn.Linear(20, 30)
    with torch.no_grad():
        model.bias.zero_()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = OptimizerStep(model, lambda ps: torch.optim.AdamW(ps, lr=0.1), load(), update_ratio=0.03)
    step(model(torch.ones(1, 20)).square().sum())
    assert moved(model, before) == pytest.approx({"weight": 0.03, "bias": 0.03}, rel=1e-4)
    bound = load(gradient={"update_bound": {"kind": "ratio", "max_ratio": 0.001, "eps": 1.0}})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    OptimizerStep(model, lambda ps: torch.optim.AdamW(ps, lr=0.1), bound, update_ratio=0.03)(model(torch.ones(1, 20)).square().sum())
    assert moved(model, before, floor=1.0) == pytest.approx({"weight": 0.001, "bias": 0.001}, rel=1e-3)


def test_batches_may_be_tuples_and_the_loader_is_walked_again() -> None:
    tokens = next(iter(loader()))
    training = train_ode(small(), [(tokens, torch.zeros(8)), [tokens]], 5, sample_every=0)
    assert len(training.steps) == 5
    none = train_ode(small(), loader(), 0, "cpu")
    assert none.steps == []
    assert math.isnan(none.loss)
    assert none.stats == {}


def test_a_data_set_and_single_sequences_are_taken_as_they_are() -> None:
    data = SyntheticTargetDataset(8, seed=0)
    train_ode(small(), data, 2, batch_size=4, sample_every=0)
    seen: list[int] = []
    model = small()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[0]))
    train_ode(model, data, 1, sample_every=0)
    train_ode(model, DataLoader(data, batch_size=None), 1, sample_every=0)
    assert seen == [8, 1]


def test_refusals() -> None:
    for keywords, named in (
        ({"n_iter": -1}, "n_iter"),
        ({"precision": "float8"}, "precision"),
        ({"loss_weights": (1.0,)}, "loss_weights"),
        ({"sample_every": -1}, "sample_every"),
        ({"dataloader": []}, "no batch"),
    ):
        arguments: dict[str, Any] = {"dataloader": loader(), "n_iter": 1, "device": "cpu", **keywords}
        with pytest.raises(UsageError, match=named):
            train_ode(small(), **arguments)
