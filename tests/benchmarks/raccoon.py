"""The log classifier: data, step, memory, and what a default run and a drifting stream come to."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from latent_drift.models.log_data import LogDataset
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.raccoon_steps import FlatSteps
from latent_drift.models.replay_memory import RaccoonMemory
from latent_drift.models.train_raccoon import continuous_learning_phase, train_raccoon_classifier
from tests.benchmarks.harness import Row, Work, paired, quartiles, seconds
from tests.benchmarks.raccoon_legacy import PlainLogClassifier, PlainLogDataset, PlainMemory

AREA = "latent_drift"
BATCH = 32
ORIGINAL_STEPS = 12.3 / 5.8e-3
"""The original's wall time for its default run, in its own training steps (12.3 s, 5.8 ms)."""


def _batch() -> tuple[Tensor, Tensor]:
    return LogDataset(BATCH, seed=0).batch(range(BATCH))


def plain_step() -> Work:
    """A training step of the straightforward rendering."""
    torch.manual_seed(0)
    tokens, labels = _batch()
    model = PlainLogClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)

    def step() -> None:
        loss, _ = model(tokens, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def corrected_step() -> Work:
    """A step of `train_raccoon_classifier`: clipped, checked, bounded, scheduled."""
    torch.manual_seed(0)
    tokens, labels = _batch()
    model = RaccoonLogClassifier(40, 4)
    step = FlatSteps(model, 1e-3, 10**6, model.config, scaled=False)
    return lambda: step(model(tokens, labels)[0])


def _through_loader(data: LogDataset | PlainLogDataset) -> Work:
    loader = DataLoader(data, batch_size=BATCH)

    def walk() -> None:
        for _ in loader:
            pass

    return walk


def _filled(size: int, memory: RaccoonMemory | PlainMemory | None = None, *, shared: bool = False) -> RaccoonMemory | PlainMemory:
    """A full memory of so many trajectories, each an object of its own or all of them one."""
    generator = torch.Generator().manual_seed(0)
    memory = RaccoonMemory(size) if memory is None else memory
    one = (torch.zeros(50, dtype=torch.long), 0)
    for score in torch.rand(size, generator=generator).tolist():
        memory.add(one if shared else (torch.zeros(50, dtype=torch.long), 0), score)
    return memory


def _microseconds(name: str, work: Work, bar: float, note: str, repeats: int = 200, rounds: int = 21) -> Row:
    work()
    low, middle, high = quartiles([seconds(work, repeats) / repeats * 1e6 for _ in range(rounds)])
    return Row(AREA, name, middle, low, high, rounds, bar, unit="us", note=note)


def _adding(memory: RaccoonMemory | PlainMemory) -> Work:
    # Scores that rise by one in 5,000: every newcomer is taken in and displaces another, in a memory of any size. Of scores that do not
    # rise a memory refuses the more the longer it has lived beside its size, and two sizes would be compared at different work.
    scores = iter((torch.rand(10**6, generator=torch.Generator().manual_seed(1)) + torch.arange(10**6) / 5000 + 0.5).tolist())
    trajectory = (torch.zeros(50, dtype=torch.long), torch.tensor(0))
    return lambda: memory.add(trajectory, next(scores))


def memory_rows() -> list[Row]:
    """Adding to a full memory and sampling from it, and how both grow."""
    memory, plain = _filled(5000), _filled(5000, PlainMemory(5000))
    # A trajectory that is dropped costs its own freeing, 1 to 2 us for a tensor in no cache, and a small memory has been turned over by such
    # newcomers long before a large one: for the growth of the memory's own work no trajectory is freed in either.
    small, large = _filled(5000, shared=True), _filled(80_000, shared=True)
    return [
        _microseconds("memory.add when full (5,000)", _adding(memory), 5.0, "plain: 152 us"),
        _microseconds("memory.sample(16) of 5,000", lambda: memory.sample(16), 50.0, "plain: 300 us"),
        paired(AREA, "memory.add, 80,000 against 5,000", _adding(large), _adding(small), bar=1.5, repeats=300, note="log ratio 1.33"),
        paired(AREA, "memory.sample(16), 80,000 against 5,000", lambda: large.sample(16), lambda: small.sample(16), bar=1.5, repeats=200),
        paired(AREA, "memory.add, corrected / plain", _adding(memory), _adding(plain), repeats=50),
    ]


def _accuracy(model: RaccoonLogClassifier, tokens: Tensor, labels: Tensor) -> float:
    return (model.predict(tokens) == labels).double().mean().item()


def default_run_rows() -> list[Row]:
    """Accuracy after the default run by seed, and its time in plain steps."""
    held_out, labels = LogDataset(20_000, seed=12345).batch(range(20_000))
    step = plain_step()
    step()
    accuracies, multiples = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        model = RaccoonLogClassifier(40, 4)
        one_step = seconds(step, 200) / 200
        start = time.perf_counter()
        train_raccoon_classifier(model, LogDataset(32_000))
        multiples.append((time.perf_counter() - start) / one_step)
        accuracies.append(_accuracy(model, held_out, labels))
    note = "seeds 0, 1, 2: " + ", ".join(f"{a:.4f}" for a in accuracies)
    times = sorted(multiples)
    return [
        Row(AREA, "accuracy after the default run, worst of three seeds", min(accuracies), min(accuracies), max(accuracies), 3, 0.97, True, "", note),
        Row(AREA, "default run, in plain training steps", times[1], times[0], times[2], 3, ORIGINAL_STEPS, unit="steps"),
    ]


def drift_rows() -> list[Row]:
    """Accuracy on the drifted stream before and after learning from it, of a model trained for 60 steps."""
    tokens, labels = LogDataset(20_000, drift_point=0, seed=999).batch(range(20_000))
    common = labels < 2
    gains, losses = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        model = RaccoonLogClassifier(40, 4)
        train_raccoon_classifier(model, LogDataset(20_000), 60)
        adapted = copy.deepcopy(model)
        continuous_learning_phase(adapted, LogDataset(2000, drift_point=500), batch_size=4)
        gains.append(_accuracy(adapted, tokens[common], labels[common]) - _accuracy(model, tokens[common], labels[common]))
        losses.append(
            min(
                _accuracy(adapted, tokens[labels == c], labels[labels == c]) - _accuracy(model, tokens[labels == c], labels[labels == c])
                for c in (2, 3)
            )
        )
    return [
        Row(
            AREA,
            "continual phase: gain on the classes that became common",
            100 * min(gains),
            100 * min(gains),
            100 * max(gains),
            3,
            0.1,
            True,
            "points",
        ),
        Row(
            AREA,
            "continual phase: change on the worst of the old classes",
            100 * min(losses),
            100 * min(losses),
            100 * max(losses),
            3,
            -1.0,
            True,
            "points",
        ),
    ]


def rows() -> list[Row]:
    """All rows of this module."""
    ours, plain = _through_loader(LogDataset(64 * BATCH, seed=0)), _through_loader(PlainLogDataset(8 * BATCH))
    data = paired(AREA, "LogDataset through the loader, plain / corrected (an item)", plain, ours, repeats=1)
    per_item = [value * 8.0 for value in (data.ratio, data.low, data.high)]  # the corrected one walked eight times as many items
    return [
        Row(AREA, data.name, *per_item, data.pairs, 30.0, True, note="batches of 32; plain: 7,290 items a second published"),
        paired(AREA, "training step of the log classifier, batch 32, corrected / plain", corrected_step(), plain_step(), bar=0.6, repeats=20),
        *memory_rows(),
        *default_run_rows(),
        *drift_rows(),
    ]
