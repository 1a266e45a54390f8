"""The toolbox's figures, printed as JSON: errors in ulp, and what each measure costs a training step.

`python -m tests.stability.measures ulp|cost`
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.numerics.limits import FLOAT_DTYPES
from latent_drift.stability import (
    ActivationMonitor,
    StabilityMonitor,
    StableLayerNorm,
    adaptive_gradient_clipping,
    assert_finite,
    assertions,
    clip_gradients,
    stable_cross_entropy,
    stable_divide,
    stable_exp,
    stable_kl_divergence,
    stable_softmax,
    stable_training_step,
)
from tests.numerics.test_elementary import ACCURACY, _sample
from tests.numerics.ulp import reference, ulps
from tests.stability.accuracy import MEASURED, errors


def ulp_table() -> dict[str, dict[str, tuple[float, float]]]:
    """function -> dtype -> largest error of value and gradient in ulp, against mpmath, over the dtype's range (see `accuracy.py` for the units)."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name, (function, exact, derivative, domain, _, _) in ACCURACY.items():
        table[name] = {}
        for dtype in FLOAT_DTYPES:
            x = _sample(dtype, *domain(dtype)).requires_grad_()
            value = function(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
            digits = 700 if name == "expm1_minus" and dtype == torch.float64 else 120
            value_error, gradient_error = (
                ulps(ours.detach(), reference(formula, x.detach(), digits)).max().item() for ours, formula in ((value, exact), (gradient, derivative))
            )
            table[name][str(dtype).removeprefix("torch.")] = (round(value_error, 2), round(gradient_error, 2))
    for label in MEASURED:
        found = {str(dtype).removeprefix("torch."): errors(label, dtype) for dtype in FLOAT_DTYPES}
        table[label] = {name: (round(value, 2), round(gradient, 2)) for name, (value, gradient) in found.items()}
    return table


class _Net(nn.Module):
    """A variational classifier of some 10 ms a step with an exponential, a softmax, a norm and a division in it."""

    def __init__(self, measure: str) -> None:
        super().__init__()
        self.body = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(256, 256), nn.ReLU())])
        self.mean, self.logvar, self.head = nn.Linear(256, 64), nn.Linear(256, 64), nn.Linear(64, 10)
        self.norm = StableLayerNorm(256) if measure == "layer norm" else nn.LayerNorm(256)
        self.exp = stable_exp if measure == "bounded exp" else torch.exp
        self.softmax = stable_softmax if measure == "softmax" else torch.softmax
        self.divide = stable_divide if measure == "division" else torch.div
        self.check = assert_finite if measure.startswith("assertions") else lambda x: x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.check(self.norm(self.body(x)))
        h = h * self.softmax(h, dim=-1)
        mean, logvar = self.mean(h), self.check(self.logvar(h))
        sigma = self.exp(0.5 * logvar)
        return self.check(self.head(self.divide(mean, 1 + sigma) + 0.1 * sigma)), mean, logvar


# What is measured -> the audit's own figure for it, in per cent, where it has one.
COSTS: dict[str, float | None] = {
    "clipping": 2.0,
    "torch clip_grad_norm_": None,
    "adaptive clipping": None,
    "bounded exp": 1.0,
    "softmax": 3.0,
    "monitoring": 5.0,
    "activation monitor": None,
    "cross entropy": None,
    "kl divergence": None,
    "layer norm": None,
    "division": None,
    "assertions": None,
    "assertions, switched off": None,
    "stable_training_step": None,
}


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return (0.5 * (logvar.exp() + mean.square() - 1 - logvar)).sum(-1).mean()


def _steps(measure: str) -> Callable[[], Any]:
    torch.manual_seed(0)
    net = _Net(measure)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x, y = torch.randn(256, 256), torch.randint(10, (256,))
    monitor = StabilityMonitor(log_interval=100)
    activations = ActivationMonitor()
    cross_entropy = stable_cross_entropy if measure == "cross entropy" else F.cross_entropy
    kl = stable_kl_divergence if measure == "kl divergence" else _kl

    def loss_of(output: tuple[Tensor, Tensor, Tensor], labels: Tensor) -> Tensor:
        logits, mean, logvar = output
        return cross_entropy(logits, labels) + 0.01 * kl(mean, logvar)

    def step() -> None:
        if measure == "stable_training_step":
            stable_training_step(net, x, y, optimizer, loss_of)
            return
        optimizer.zero_grad()
        if measure == "activation monitor":
            activations.register_hooks(net)
        with assertions(measure == "assertions"):
            loss = loss_of(net(x), y)
        loss.backward()
        if measure == "clipping":
            clip_gradients(net, 1.0)
        if measure == "adaptive clipping":
            adaptive_gradient_clipping(net)
        if measure == "torch clip_grad_norm_":
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        if measure == "monitoring":
            monitor.check_loss(loss)
            monitor.log_gradient_stats(net)
            monitor.step_update()
        if measure == "activation monitor":
            activations.remove_hooks()
            _ = activations.stats
        optimizer.step()

    return step


def cost_table(pairs: int = 31, repeat: int = 4) -> dict[str, dict[str, float | None]]:
    """measure -> median ratio of a step with it to one without, quartiles, and the audit's figure; A B A B in one process, in CPU time."""
    table: dict[str, dict[str, float | None]] = {}
    for measure, audit in COSTS.items():
        plain, with_it = _steps("nothing"), _steps(measure)
        for f in (plain, with_it) * 3:
            f()
        ratios = []
        for _ in range(pairs):
            times = []
            for f in (plain, with_it):
                start = time.process_time()
                for _ in range(repeat):
                    f()
                times.append(time.process_time() - start)
            ratios.append(times[1] / times[0])
        low, median, high = statistics.quantiles(ratios, n=4)
        table[measure] = {
            "ratio": round(median, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "audit": None if audit is None else 1 + audit / 100,
        }
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = ulp_table() if sys.argv[1] == "ulp" else cost_table()
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
