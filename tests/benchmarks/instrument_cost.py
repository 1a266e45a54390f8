"""What guarding costs: training steps, the step guard, entering and leaving, single operations, memory."""

from __future__ import annotations

import statistics
import time
import types
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import instrument
from instrument.layer_norms import FIRST_STRIDE
from latent_drift.numerics.gradients import clip_by_global_norm_
from tests.benchmarks.harness import Row, paired, quartiles
from tests.benchmarks.instrument_ddp import ddp_rows

AREA = "instrument"

# A block looks at more in its first steps (which optimizers own which leaves, whether a loaded state is finite); what a step costs is what the
# thousands after those cost. Of small steps one in sixteen takes the gradient norms by layer, at first: that many are timed together, after as many.
FIRST_STEPS = 5

# Replacing attributes makes the interpreter forget what it knew of their owners, and what entering frees moves the allocator: a call costs what it
# costs once both have settled. Entering has a row of its own.
FIRST_CALLS = {1_000: 100, 1_000_000: 20, 100_000_000: 1}


class SmallClassifier(nn.Module):
    """About 50 parameter tensors and many tiny operations, among them the guarded ones: about 5 ms a step."""

    def __init__(self, width: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, width)
        self.blocks = nn.ModuleList(nn.ModuleList([nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)]) for _ in range(blocks))
        self.scale = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for norm, first, second in self.blocks:
            n = norm(h)
            weights = torch.softmax(first(n) / 8.0, dim=-1)
            h = h + second(torch.nn.functional.silu(n)) * weights
        pooled = h.mean(1)
        spread = torch.exp(torch.tanh(self.scale(pooled)))
        unit = pooled / (pooled.norm(dim=-1, keepdim=True) + 1e-6)
        return self.head(unit * spread.sqrt())


class SmallGpt(nn.Module):
    """A causal transformer written by hand, about 50 ms a step."""

    def __init__(self, width: int = 128, layers: int = 3, heads: int = 4, vocabulary: int = 200) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(128, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        h = self.token(tokens) + self.position[:length]
        for layer in self.layers:
            h = layer(h, src_mask=mask)
        return self.head(h)


class ConvNet(nn.Module):
    """A plain convolutional net, 50 ms a step and more."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source, target in ((3, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(source, target, 3, padding=1), nn.BatchNorm2d(target), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def training_step(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """One step of AdamW on a fixed batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(inputs)
        loss = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        loss.backward()
        optimizer.step()

    return step


class _CheckEveryOp(TorchFunctionMode):
    """The obvious runtime checker: isfinite on the result of every torch call."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            bool(torch.isfinite(out.detach()).all())
        return out


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _step_rows() -> list[Row]:
    torch.manual_seed(0)
    cases = [
        ("small classifier", SmallClassifier(), torch.randint(40, (16, 24)), torch.randint(4, (16,)), 1.08, FIRST_STRIDE),
        ("small GPT", SmallGpt(), torch.randint(200, (16, 96)), torch.randint(200, (16, 96)), 1.02, 1),
        ("convolutional net", ConvNet(), torch.randn(32, 3, 32, 32), torch.randint(10, (32,)), 1.02, 1),
    ]
    rows = []
    for name, model, inputs, targets, bar, repeats in cases:
        step = training_step(model, inputs, targets)
        warm = max(FIRST_STEPS, repeats)
        plain_ms = 1e3 * statistics.median(_seconds(step) for _ in range(20))
        note = f"plain step {plain_ms:.1f} ms, {len(list(model.parameters()))} tensors"
        around: Callable[[], AbstractContextManager[object]] = lambda: instrument.stable(profile="guard")  # noqa: E731
        rows.append(paired(AREA, f"{name}: guard", step, step, bar=bar, repeats=repeats, around_a=around, warm=warm, note=note))
        train: Callable[[], AbstractContextManager[object]] = lambda: instrument.stable(profile="train")  # noqa: E731
        rows.append(paired(AREA, f"{name}: train", step, step, bar=bar, repeats=repeats, around_a=train, warm=warm, note="clipping included"))
        if name == "small classifier":
            rows.append(paired(AREA, f"{name}: set_detect_anomaly", step, step, pairs=9, repeats=repeats, around_a=_anomaly, note="yardstick"))
            rows.append(
                paired(AREA, f"{name}: TorchFunctionMode isfinite", step, step, pairs=9, repeats=repeats, around_a=_CheckEveryOp, note="yardstick")
            )
            parameters = list(model.parameters())

            def clipped(step: Callable[[], None] = step, parameters: list[nn.Parameter] = parameters) -> None:
                step()
                nn.utils.clip_grad_norm_(parameters, 1.0)

            rows.append(paired(AREA, f"{name}: clip_grad_norm_ by hand", clipped, step, pairs=9, repeats=repeats, note="yardstick"))
    return rows


def _anomaly() -> AbstractContextManager[object]:
    return torch.autograd.detect_anomaly(check_nan=True)


def _step_guard_rows() -> list[Row]:
    rows = []
    for count in (50, 500):
        parameters = [nn.Parameter(torch.randn(1000)) for _ in range(count)]
        for parameter in parameters:
            parameter.grad = torch.randn(1000)

        def ours(parameters: list[nn.Parameter] = parameters) -> None:
            clip_by_global_norm_([p.grad for p in parameters if p.grad is not None], 1.0)

        def torchs(parameters: list[nn.Parameter] = parameters) -> None:
            nn.utils.clip_grad_norm_(parameters, 1.0)

        rows.append(paired(AREA, f"step guard against clip_grad_norm_, {count} tensors", ours, torchs, bar=1.0, repeats=20))
    return rows


def _enter_rows() -> list[Row]:
    """Entering and leaving with 2,000 extra modules loaded, a tenth of which use torch, each with functions and classes."""
    import sys

    source = "import torch\nfrom torch import exp\nimport torch.nn.functional as F\nclass M(torch.nn.Module):\n    act = staticmethod(torch.exp)\n"
    source += "\n".join(f"def f{i}(x, g=exp): return g(x) + {i}" for i in range(20))
    plain = "import os, json\n" + "\n".join(f"def f{i}(x): return x + {i}\nclass C{i}: a = {i}" for i in range(20))
    names = []
    for index in range(2000):
        module = types.ModuleType(f"bench_module_{index}")
        exec(source if index % 10 == 0 else plain, module.__dict__)
        sys.modules[module.__name__] = module
        names.append(module.__name__)
    try:
        block = instrument.stable(profile="guard")
        times = []
        for _ in range(21):
            start = time.perf_counter()
            with block:
                pass
            times.append((time.perf_counter() - start) * 1000.0)
        low, middle, high = quartiles(times[1:])
        return [Row(AREA, "enter + leave, 2,000 modules", middle, low, high, 20, bar=50.0, unit="ms")]
    finally:
        for name in names:
            del sys.modules[name]


class _Watched:
    """A guarded block in which the watching mode is on throughout."""

    def __enter__(self) -> None:
        self._block = instrument.stable(profile="guard", anomaly={"watch_steps": 1_000_000})
        run = self._block.__enter__()
        assert run.search.watch.start(run)

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(None, None, None)


def _watching_rows() -> list[Row]:
    torch.manual_seed(0)
    step = training_step(SmallClassifier(), torch.randint(40, (16, 24)), torch.randint(4, (16,)))
    return [paired(AREA, "small classifier: the watching mode while it locates", step, step, bar=4.0, repeats=5, around_a=_Watched)]


def _operation_rows() -> list[Row]:
    rows = []
    optimizers = []
    for size, bar, repeats, pairs in ((1_000, 1.5, 500, 21), (1_000_000, 1.25, 30, 21), (100_000_000, 1.15, 1, 7)):
        for name, function in (("exp", lambda x: x.exp()), ("divide", lambda x: x / x), ("sqrt", lambda x: x.sqrt()), ("log", lambda x: x.log())):
            x = nn.Parameter(torch.rand(size) + 0.5)
            ones = torch.ones(size)
            optimizers.append(torch.optim.SGD([x], lr=0.0))  # as in a script: the gradients are judged at its step, not here

            def work(function=function, x=x, ones=ones) -> None:  # type: ignore[no-untyped-def]
                x.grad = None
                function(x).backward(ones)

            around: Callable[[], AbstractContextManager[object]] = lambda: instrument.stable(profile="guard")  # noqa: E731
            title = f"{name}, {size:,} elements, forward + backward"
            rows.append(paired(AREA, title, work, work, bar=bar, repeats=repeats, pairs=pairs, around_a=around, warm=FIRST_CALLS[size]))
    return rows


def peak_bytes(model: nn.Module, step: Callable[[], None]) -> int:
    """The most that a step's own allocations add to what was held before it, as torch's allocator reports them."""
    model.zero_grad()  # the profiler does not know the size of what was allocated before it
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _memory_rows() -> list[Row]:
    """Allocations are counted, not sampled, so one pair would do; a few show that the count does not vary."""
    torch.manual_seed(0)
    rows = []
    for name, model, inputs, targets in (
        ("small GPT", SmallGpt(), torch.randint(200, (16, 96)), torch.randint(200, (16, 96))),
        ("convolutional net", ConvNet(), torch.randn(8, 3, 32, 32), torch.randint(10, (8,))),
    ):
        step = training_step(model, inputs, targets)
        ratios = []
        for _ in range(5):
            for _ in range(FIRST_STEPS):
                step()
            plain = peak_bytes(model, step)
            with instrument.stable(profile="guard"):
                for _ in range(FIRST_STEPS):
                    step()
                ratios.append(peak_bytes(model, step) / plain)
        low, middle, high = quartiles(ratios)
        rows.append(Row(AREA, f"{name}: peak memory of a step", middle, low, high, 5, bar=1.01, note=f"{plain / 2**20:.1f} MiB above what is held"))
    return rows


def rows() -> list[Row]:
    """Every row of the instrument section."""
    return [*_step_rows(), *_step_guard_rows(), *_enter_rows(), *_memory_rows(), *_watching_rows(), *_operation_rows(), *ddp_rows()]
