"""The latent ODE model against straightforward renderings of its formulas (benchmarks.md, section latent_drift)."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from latent_drift.models.goodness_of_fit import FastEppsPulley
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sample_ode import sample_sequences_ode
from latent_drift.models.sequences import SyntheticTargetDataset, synthetic_sequences
from tests.benchmarks.harness import Row, paired, quartiles, seconds
from tests.benchmarks.ode_legacy import NaiveSlicing, NaiveSyntheticTargets, naive_epps_pulley, naive_loss, naive_samples, trapezoid_grid

AREA = "latent_drift"
SIZES = {"vocab_size": 30, "latent_size": 64, "hidden_size": 128, "embed_size": 64}
BATCH, SLICES = 128, 1024
WEIGHTS = (1.0, 0.05, 1.0)


def statistic() -> Row:
    """Forward and backward of (8576, 1024) samples on 17 points."""
    torch.manual_seed(0)
    x = torch.randn(8576, 1024)
    ours, theirs = x.mT.contiguous().mT.requires_grad_(), x.clone().requires_grad_()  # each in its own best layout
    fast, (t, weights) = FastEppsPulley(), trapezoid_grid()

    def naive() -> None:
        theirs.grad = None
        naive_epps_pulley(theirs, t, weights).mean().backward()

    def recurrence() -> None:
        ours.grad = None
        fast(ours).mean().backward()

    return paired(AREA, "statistic (8576, 1024, 17), forward + backward", naive, recurrence, bar=12.0, at_least=True, pairs=15, repeats=1)


def _step(ours: bool) -> Callable[[], float]:
    torch.manual_seed(0)
    model = DeterministicLatentODE(**SIZES, num_slices=SLICES, legacy_compat=not ours)
    tokens = synthetic_sequences(BATCH, torch.Generator().manual_seed(0)).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    slicing = NaiveSlicing(SLICES)

    def step() -> float:
        loss = model(tokens, WEIGHTS)[0] if ours else naive_loss(model, slicing, tokens, WEIGHTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def training_step() -> Row:
    """A step of the corrected model against the published objective with full (N, K, 17) tensors."""
    return paired(AREA, f"ODE training step, batch {BATCH}, {SLICES} slices", _step(False), _step(True), bar=8.0, at_least=True, pairs=15, repeats=1)


def legacy_step_error() -> Row:
    """Relative difference of loss and of all gradients, fast against full tensors, at full size."""
    torch.manual_seed(0)
    model = DeterministicLatentODE(**SIZES, num_slices=SLICES, legacy_compat=True)
    tokens = synthetic_sequences(BATCH, torch.Generator().manual_seed(0)).long()
    expected = naive_loss(model, NaiveSlicing(SLICES), tokens, WEIGHTS)
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss, _ = model(tokens, WEIGHTS)
    loss.backward()
    squared = sum(float((p.grad - gradients[n]).square().sum()) for n, p in model.named_parameters() if p.grad is not None)
    error = max(abs(loss.item() / expected.item() - 1), (squared / sum(float(g.square().sum()) for g in gradients.values())) ** 0.5)
    return Row(AREA, "ODE training step: loss and gradients against full tensors", error, error, error, 1, bar=1e-5, unit="relative")


def _high_water() -> float:
    """Peak resident memory of this process in GiB (Linux); ru_maxrss would include what the parent once held."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("no VmHWM in /proc/self/status")


def _peak(ours: bool, pipe: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    step = _step(ours)
    before = _high_water()
    step()
    step()
    pipe.send(_high_water() - before)


def peak_memory(ours: bool) -> float:
    """GiB that two steps add to the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(ours, theirs))
    process.start()
    peak = float(mine.recv())
    process.join()
    return peak


def memory() -> Row:
    """Peak of the corrected step; the published form's in the note."""
    ours, theirs = peak_memory(True), peak_memory(False)
    return Row(AREA, "ODE training step: peak memory", ours, ours, ours, 1, bar=0.6, unit="GiB", note=f"full tensors: {theirs:.2f} GiB")


def sampling() -> Row:
    """Two groups of 8 sequences of 67, the corrected walk against the published one with a full decoder pass a token."""
    torch.manual_seed(0)
    published, corrected = DeterministicLatentODE(**SIZES, legacy_compat=True), DeterministicLatentODE(**SIZES)
    return paired(
        AREA,
        "sampling 2 x 8 sequences of 67",
        lambda: naive_samples(published, 67, 8),
        lambda: sample_sequences_ode(corrected, 67, 8),
        bar=5.0,
        at_least=True,
        pairs=15,
        repeats=1,
        note="ours also encodes every token; published: decoder and path only",
    )


def sampling_growth() -> Row:
    """Time at 268 tokens over time at 67: 16 would be quadratic."""
    model = DeterministicLatentODE(**SIZES)
    return paired(
        AREA,
        "sampling, 268 tokens over 67",
        lambda: sample_sequences_ode(model, 268, 8),
        lambda: sample_sequences_ode(model, 67, 8),
        bar=16.0,
        pairs=15,
        repeats=1,
        note="quadratic: 16",
    )


def data_set() -> Row:
    """Items a second through a DataLoader with batches of 128."""

    def walk(dataset: Dataset[torch.Tensor]) -> Callable[[], None]:
        def once() -> None:
            for _ in DataLoader(dataset, batch_size=128, shuffle=True):
                pass

        return once

    naive, ours = walk(NaiveSyntheticTargets(16_384)), walk(SyntheticTargetDataset(16_384, seed=0))
    many = walk(SyntheticTargetDataset(65_536, seed=0))
    many()
    _, rate, _ = quartiles([65_536 / seconds(many, 1) for _ in range(5)])
    return paired(
        AREA, "SyntheticTargetDataset through the loader", naive, ours, bar=10.0, at_least=True, pairs=15, repeats=1, note=f"{rate:,.0f} items/s"
    )


def rows() -> list[Row]:
    """All of them."""
    return [statistic(), training_step(), legacy_step_error(), memory(), sampling(), sampling_growth(), data_set()]
