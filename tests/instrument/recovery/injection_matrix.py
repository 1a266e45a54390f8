"""A fault at every place, under every policy, profile and kind of optimizer: what becomes of the parameters.

python -m tests.instrument.recovery.injection_matrix [--every] [--value nan ...]      a table of counts
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import instrument
from instrument.injection import PLACES, Place
from latent_drift.errors import NumericalError

STEPS = 8


class OwnOptimizer(torch.optim.Optimizer):
    """What people write: momentum by hand, in a subclass of Optimizer."""

    def __init__(self, params: Any, lr: float = 0.05) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if "velocity" not in state:
                        state["velocity"] = torch.zeros_like(p)
                    state["velocity"].mul_(0.9).add_(p.grad)
                    p.add_(state["velocity"], alpha=-group["lr"])


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "Adam loop": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
    "own subclass": OwnOptimizer,
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}
if torch.cuda.is_available():
    OPTIMIZERS["AdamW capturable"] = lambda p: torch.optim.AdamW(p, lr=0.01, capturable=True)

POLICIES: dict[str, dict[str, Any]] = {
    "skip": {},
    "zero": {"gradient": {"nonfinite": "zero"}},
    "clip norm": {"gradient": {"clip": {"kind": "norm", "max_norm": 0.5}}},
    "clip value": {"gradient": {"clip": {"kind": "value", "max_value": 0.1}}},
    "clip percentile": {"gradient": {"clip": {"kind": "adaptive_percentile", "percentile": 90.0, "warmup": 2, "history": 8}}},
    "clip zscore": {"gradient": {"clip": {"kind": "zscore", "threshold": 2.0, "warmup": 2, "history": 8}}},
    "clip agc": {"gradient": {"clip": {"kind": "agc", "clipping": 0.05}}},
    "update bound": {"gradient": {"update_bound": {"kind": "ratio", "max_ratio": 0.1}}},
    "rollback": {"recovery": {"rollback": True, "snapshot_every": 2, "rollback_after": 1, "lr_recovery_steps": 3}},
}
PROFILES = ("guard", "train", "strict")
VALUES = ("nan", "inf", "huge", "bitflip")


@dataclass(frozen=True)
class Case:
    """One training with one fault; without policy and profile it runs plain."""

    place: Place
    value: str
    optimizer: str
    policy: str = ""
    profile: str = ""

    def __str__(self) -> str:
        return " / ".join(part for part in (self.place, self.value, self.optimizer, self.policy, self.profile) if part)


@dataclass(frozen=True)
class Result:
    """What was left: non-finite numbers among parameters, buffers and optimizer state at any time after the fault, and how it ended."""

    parameters: int
    buffers: int
    state: int
    ended: str


def cases(*, every: bool) -> Iterator[Case]:
    """All of them, or a Latin sample in which every pair of place and policy, place and profile, place and optimizer occurs."""
    if every:
        for place, value, optimizer, policy, profile in itertools.product(PLACES, VALUES, OPTIMIZERS, POLICIES, PROFILES):
            yield Case(place, value, optimizer, policy, profile)  # type: ignore[arg-type]
        return
    names, policies = list(OPTIMIZERS), list(POLICIES)
    for row, place in enumerate(PLACES):
        for column in range(len(policies)):
            optimizer = names[(row + column) % len(names)]
            yield Case(place, VALUES[(row + column) % 4], optimizer, policies[column], PROFILES[(row + column) % 3])  # type: ignore[arg-type]


def _count(tensors: Any) -> int:
    return sum(int((~torch.isfinite(t)).sum()) for t in tensors if isinstance(t, Tensor) and t.is_floating_point())


def _state(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        for value in state.values():
            yield from value if isinstance(value, list) else [value]


def train(case: Case) -> Result:
    """A small regression with a normalisation layer, a scheduler and (for the loss scale) a scaler; the fault goes in at step 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    optimizer = OPTIMIZERS[case.optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 0.01 * step))
    # A closure cannot be used with a scaler: there the scale stands for itself.
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if case.place == "loss_scale" else None
    bad = [0, 0, 0]
    closed = isinstance(optimizer, torch.optim.LBFGS)

    def loss_of(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    def one_step(x: Tensor) -> None:
        if closed and scaler is None:
            optimizer.step(lambda: loss_of(x))  # type: ignore[arg-type,return-value]
        elif scaler is not None and not closed:
            loss_of(x)
            scaler.step(optimizer)
            scaler.update()
        else:
            loss_of(x)
            if scaler is not None:  # unscaled by hand
                for p in model.parameters():
                    p.grad.div_(scaler.get_scale())  # type: ignore[union-attr]
                optimizer.step(lambda: model(x).pow(2).mean().detach())  # type: ignore[arg-type,return-value]
            else:
                optimizer.step()
        scheduler.step()

    ended = "went on"
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if case.policy:
            stack.enter_context(instrument.stable(profile=case.profile, **POLICIES[case.policy]))
        at = 4 if not closed else 12
        stack.enter_context(instrument.inject(case.place, case.value, step=at, seed=1))  # type: ignore[arg-type]
        for _ in range(STEPS):
            try:
                one_step(torch.randn(16, 4))
            except NumericalError:
                ended = "raised NumericalError"
            except (RuntimeError, ValueError) as error:
                ended = f"raised {type(error).__name__}"
            # Looked at as a checkpoint would be: between steps.
            bad[0] += _count(model.parameters())
            bad[1] += _count(model.buffers())
            bad[2] += _count(_state(optimizer))
            if ended != "went on":
                break
    return Result(*bad, ended)


def main() -> int:
    """Run the matrix and print its counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.instrument.recovery.injection_matrix", description=__doc__)
    parser.add_argument("--every", action="store_true", help="every combination, not the sample")
    parser.add_argument("--value", nargs="+", choices=VALUES, default=VALUES, help="only these values")
    arguments = parser.parse_args()
    every = arguments.every
    write = sys.stdout.write
    plain: Counter[str] = Counter()
    for place, value, optimizer in itertools.product(PLACES, arguments.value, OPTIMIZERS):
        result = train(Case(place, value, optimizer))  # type: ignore[arg-type]
        plain["runs"] += 1
        plain["parameters"] += result.parameters > 0
        plain["buffers"] += result.buffers > 0
        plain["state"] += result.state > 0
        plain["raised"] += result.ended != "went on"
    write(f"plain: {plain['runs']} runs; non-finite parameters in {plain['parameters']}, buffers in {plain['buffers']}, ")
    write(f"optimizer state in {plain['state']}; {plain['raised']} raised\n")
    rows: dict[tuple[str, str], Counter[str]] = {}
    failures = []
    for case in cases(every=every):
        if case.value not in arguments.value:
            continue
        result = train(case)
        row = rows.setdefault((case.place, case.profile), Counter())
        row["runs"] += 1
        row["parameters"] += result.parameters > 0
        row["buffers"] += result.buffers > 0
        row["state"] += result.state > 0
        row["raised"] += result.ended == "raised NumericalError"
        row["crashed"] += result.ended not in ("went on", "raised NumericalError")
        if result.parameters or result.buffers or result.state or result.ended not in ("went on", "raised NumericalError"):
            failures.append(f"{case}: {result}")
    write(f"{'place':<12}{'profile':<9}{'runs':>6}{'parameters':>12}{'buffers':>9}{'state':>7}{'raised':>8}{'crashed':>9}\n")
    for (place, profile), row in sorted(rows.items()):
        write(
            f"{place:<12}{profile:<9}{row['runs']:>6}{row['parameters']:>12}{row['buffers']:>9}{row['state']:>7}{row['raised']:>8}{row['crashed']:>9}\n"
        )
    for failure in failures:
        write(failure + "\n")
    total = sum((row for row in rows.values()), Counter())
    write(
        f"guarded: {total['runs']} runs; non-finite parameters in {total['parameters']}, buffers in {total['buffers']}, state in {total['state']}\n"
    )
    return 1 if total["parameters"] and not math.isnan(total["parameters"]) else 0


if __name__ == "__main__":
    sys.exit(main())
