"""Minutes-long runs whose figures are recorded: `pytest -m slow tests/models/raccoon`."""

import time

import pytest
import torch
from torch.utils.data import DataLoader

from latent_drift.models.log_data import LogDataset
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.train_raccoon import RaccoonStep, train_raccoon_classifier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS = 10_000
RUNS = [("float32", 32), ("bfloat16", 32), ("float16", 32), ("float32", 1), ("float16", 2), ("bfloat16", 8), ("float32", 256)]


@pytest.mark.parametrize(("precision", "batch_size"), RUNS)
def test_ten_thousand_steps_have_no_nan_or_inf(precision, batch_size, record_property):
    torch.manual_seed(0)
    model = RaccoonLogClassifier(40, 4)
    held_out, labels = LogDataset(4000).batch(range(4000))
    records: list[RaccoonStep] = []
    start = time.perf_counter()
    train_raccoon_classifier(model, DataLoader(LogDataset(50_000), batch_size, shuffle=True), STEPS, precision=precision, on_step=records.append)
    seconds = time.perf_counter() - start
    accuracy = (model.predict(held_out) == labels).double().mean().item()
    losses, norms = torch.tensor([r.loss for r in records]), torch.tensor([r.norm for r in records])
    skipped = sum(r.skipped for r in records)
    record_property(
        "figures", f"{precision} batch {batch_size}: accuracy {accuracy:.4f}, skipped {skipped}, largest norm {norms.max():.3g}, {seconds:.0f} s"
    )
    assert len(records) == STEPS
    assert torch.isfinite(losses).all()
    assert skipped == 0
    assert torch.isfinite(norms).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert accuracy > 0.97


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_training_reaches_97_percent(seed, record_property):
    torch.manual_seed(seed)
    model = RaccoonLogClassifier(40, 4)
    held_out, labels = LogDataset(20_000).batch(range(20_000))
    start = time.perf_counter()
    train_raccoon_classifier(model, LogDataset(32_000))
    seconds = time.perf_counter() - start
    accuracy = (model.predict(held_out) == labels).double().mean().item()
    record_property("figures", f"seed {seed}: accuracy {accuracy:.4f} after 1,000 steps of 32, {seconds:.1f} s")
    assert accuracy >= 0.97
