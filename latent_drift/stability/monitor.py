"""What a training run looks like from inside: losses, gradients, parameters, updates; warning signs; out to people and programs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.config.active import active
from latent_drift.errors import MissingExtraError, NumericalError
from latent_drift.numerics.finite import dense_values
from latent_drift.numerics.shards import joined_norms

_RECENT = 50


class StabilityMonitor:
    """Collects losses, gradient norms and parameter statistics of a run, and warns of what usually comes before it fails.

    Args:
        log_interval: steps between records that go to `jsonl` and `tensorboard`, and between measurements of updates.
        raise_on_nan: whether a non-finite loss or gradient raises (it is counted in any case).
        spike_ratio: a loss this many times the median of the last 50 is a spike; the config's `gradient.spike_ratio` (10).
        warn_norm: a gradient norm from which one is warned; the config's `gradient.warn_norm` (100).
        history: newest entries kept in the lists; totals go on.
        jsonl: a file to which a line of JSON is appended at each interval.
        tensorboard: a directory, or a SummaryWriter.

    Attributes:
        grad_norms, loss_values, param_stats: newest last. `nan_count`, `inf_count`: losses and gradients that were not finite.
        warnings: dicts with step, kind, value, message.
        layer_grad_norms: name -> norm, of the last `log_gradient_stats`. `layer_weights`: name -> mean, std, min, max, of the last
            `log_param_stats`. `update_ratios`: name -> |update| / |weight|.

    *Numerics*: all norms of a step are formed on the device and read together, once.

    >>> import torch
    >>> monitor = StabilityMonitor(raise_on_nan=False)
    >>> monitor.check_loss(torch.tensor(1.0)), monitor.check_loss(torch.tensor(float("nan")))
    (True, False)
    >>> monitor.step_update(); monitor.summary()
    {'total_steps': 1, 'nan_count': 1, 'inf_count': 0, 'loss_mean': 1.0, 'grad_norm_max': 0.0}
    """

    def __init__(
        self,
        log_interval: int = 100,
        raise_on_nan: bool = True,
        *,
        spike_ratio: float | None = None,
        warn_norm: float | None = None,
        history: int = 10_000,
        jsonl: str | Path | None = None,
        tensorboard: Any = None,
    ) -> None:
        gradient = active().gradient
        self.log_interval = max(1, log_interval)
        self.raise_on_nan = raise_on_nan
        self.spike_ratio = gradient.spike_ratio if spike_ratio is None else spike_ratio
        self.warn_norm = gradient.warn_norm if warn_norm is None else warn_norm
        self.history = history
        self.jsonl = None if jsonl is None else Path(jsonl)
        self.step = 0
        self.grad_norms: list[float] = []
        self.loss_values: list[float] = []
        self.param_stats: list[dict[str, Any]] = []
        self.layer_grad_norms: dict[str, float] = {}
        self.layer_weights: dict[str, dict[str, float]] = {}
        self.update_ratios: dict[str, float] = {}
        self.warnings: list[dict[str, Any]] = []
        self.nan_count = 0
        self.inf_count = 0
        self._loss_sum, self._loss_count, self._grad_norm_max = 0.0, 0, 0.0
        self._writer = _writer(tensorboard)

    # --- what is told to it ---------------------------------------------------------------------------------

    def check_loss(self, loss: Tensor | float) -> bool:
        """Record a loss; whether it is finite.

        Raises:
            NumericalError: it is not, and `raise_on_nan` holds.
        """
        value = float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
        if not self._count(value):
            if self.raise_on_nan:
                raise NumericalError(
                    f"the loss is {value} at step {self.step}; skip the step, or find its origin with latent_drift.stability.diagnose"
                )
            return False
        recent = self.loss_values[-_RECENT:]
        if len(recent) >= 10:
            usual = statistics.median(recent)
            if usual > 0 and value > self.spike_ratio * usual:
                self._warn("loss_spike", value, f"loss {value:.4g} is {value / usual:.1f} times the median of the last {len(recent)}")
        self._append(self.loss_values, value)
        self._loss_sum += value
        self._loss_count += 1
        return True

    def log_gradient_stats(self, model: nn.Module) -> dict[str, Any]:
        """Record the gradient norm of every parameter and of all together.

        Returns:
            `step`, and `max_grad, mean_grad, min_grad` of the parameters' gradient norms (0 without gradients).

        Raises:
            NumericalError: a norm is not finite, and `raise_on_nan` holds; names the parameters.
        """
        named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        values = joined_norms([g for _, g in named])
        self.layer_grad_norms = {name: value for (name, _), value in zip(named, values, strict=True)}
        total = math.hypot(*values) if values else 0.0
        if any(math.isnan(v) for v in values):
            total = math.nan
        if self._count(total):
            self._append(self.grad_norms, total)
            self._grad_norm_max = max(self._grad_norm_max, total)
            if total > self.warn_norm:
                largest = max(self.layer_grad_norms, key=lambda name: self.layer_grad_norms[name])
                self._warn("gradient_norm", total, f"gradient norm {total:.4g} exceeds {self.warn_norm:g}; most of it in {largest}")
        elif self.raise_on_nan:
            bad = [name for name, value in self.layer_grad_norms.items() if not math.isfinite(value)]
            raise NumericalError(f"the gradients of {', '.join(bad)} are not finite at step {self.step}; skip the step")
        if not values:
            values = [0.0]
        return {"step": self.step, "max_grad": max(values), "mean_grad": sum(values) / len(values), "min_grad": min(values)}

    @torch.no_grad()
    def log_param_stats(self, model: nn.Module) -> dict[str, Any]:
        """Record mean, standard deviation and range of every floating parameter, in `layer_weights`.

        Returns:
            `step`, and `mean_param_mean, mean_param_std`, averaged over the parameters.
        """
        named = [(name, dense_values(p)) for name, p in model.named_parameters() if p.numel() and (p.is_floating_point() or p.is_complex())]
        stats = {"step": self.step, "mean_param_mean": 0.0, "mean_param_std": 0.0}
        if named:
            device = named[0][1].device
            wide = [(t if t.dtype == torch.float64 else t.float()) for _, t in named]
            rows = torch.stack([torch.stack([t.mean(), t.std(correction=0), *torch.aminmax(t)]).to(device, torch.float32) for t in wide]).tolist()
            self.layer_weights = {
                name: dict(zip(("mean", "std", "min", "max"), row, strict=True)) for (name, _), row in zip(named, rows, strict=True)
            }
            stats["mean_param_mean"], stats["mean_param_std"] = (sum(row[i] for row in rows) / len(rows) for i in (0, 1))
        self._append(self.param_stats, stats)
        return stats

    @contextmanager
    def watch_update(self, model: nn.Module) -> Iterator[None]:
        """Around `optimizer.step()`: measures |update| / |weight| per parameter, every `log_interval` steps (it copies the parameters then)."""
        if self.step % self.log_interval:
            yield
            return
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        yield
        with torch.no_grad():
            named = [(name, p.detach()) for name, p in model.named_parameters() if name in before]
            moved = joined_norms([p - before[name] for name, p in named])
            sizes = joined_norms([before[name] for name, _ in named])
        self.update_ratios = {name: m / s if s else math.inf if m else 0.0 for (name, _), m, s in zip(named, moved, sizes, strict=True)}

    def step_update(self) -> None:
        """One step is over: count it, and at each interval write out."""
        self.step += 1
        if self.step % self.log_interval == 0:
            record = self.record()
            if self.jsonl is not None:
                self.jsonl.parent.mkdir(parents=True, exist_ok=True)
                with self.jsonl.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(_strict(record)) + "\n")
            if self._writer is not None:
                for key, value in _flat(record):
                    self._writer.add_scalar(f"stability/{key}", value, self.step)

    # --- what it tells --------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """The state of the run at this step, as plain data."""
        return {
            "step": self.step,
            "loss": self.loss_values[-1] if self.loss_values else None,
            "grad_norm": self.grad_norms[-1] if self.grad_norms else None,
            "nan_count": self.nan_count,
            "inf_count": self.inf_count,
            "layer_grad_norm": dict(self.layer_grad_norms),
            "update_ratio": dict(self.update_ratios),
            **({"layer_weight": {name: dict(row) for name, row in self.layer_weights.items()}} if self.layer_weights else {}),
            **({k: v for k, v in self.param_stats[-1].items() if k != "step"} if self.param_stats else {}),
        }

    def summary(self) -> dict[str, Any]:
        """`total_steps, nan_count, inf_count, loss_mean, grad_norm_max` of the whole run (finite values only)."""
        return {
            "total_steps": self.step,
            "nan_count": self.nan_count,
            "inf_count": self.inf_count,
            "loss_mean": self._loss_sum / self._loss_count if self._loss_count else 0.0,
            "grad_norm_max": self._grad_norm_max,
        }

    def table(self) -> str:
        """Summary, warnings and the layers with the largest gradients, as text."""
        lines = [f"{key:<16}{value:>14.6g}" for key, value in self.summary().items()]
        if self.layer_grad_norms:
            lines += ["", f"{'layer':<40}{'grad norm':>12}{'update/weight':>15}"]
            for name, norm in sorted(self.layer_grad_norms.items(), key=lambda item: -_sortable(item[1]))[:20]:
                ratio = self.update_ratios.get(name)
                lines.append(f"{name:<40}{norm:>12.4g}" + (f"{ratio:>15.4g}" if ratio is not None else ""))
        lines += [f"step {w['step']}: {w['kind']}: {w['message']}" for w in self.warnings[-10:]]
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """Counts and histories, for a checkpoint."""
        keys = (
            "step",
            "grad_norms",
            "loss_values",
            "param_stats",
            "warnings",
            "nan_count",
            "inf_count",
            "_loss_sum",
            "_loss_count",
            "_grad_norm_max",
        )
        return {key: list(value) if isinstance(value := getattr(self, key), list) else value for key in keys}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved counts and histories."""
        for key, value in state.items():
            setattr(self, key, list(value) if isinstance(value, list) else value)

    def _count(self, value: float) -> bool:
        self.nan_count += math.isnan(value)
        self.inf_count += math.isinf(value)
        return math.isfinite(value)

    def _append(self, values: list[Any], value: Any) -> None:
        values.append(value)
        if len(values) > self.history:
            del values[: len(values) - self.history]

    def _warn(self, kind: str, value: float, message: str) -> None:
        self._append(self.warnings, {"step": self.step, "kind": kind, "value": value, "message": message})


def _sortable(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _strict(value: Any) -> Any:
    """Plain data that JSON can hold: NaN and inf become their names."""
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _flat(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, dict):
            for inner, number in _flat(value):
                yield f"{key}/{inner}", number
        elif isinstance(value, (int, float)):
            yield key, value


def _writer(tensorboard: Any) -> Any:
    if tensorboard is None or hasattr(tensorboard, "add_scalar"):
        return tensorboard
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("TensorBoard output", "tensorboard", "tensorboard") from error
    return SummaryWriter(str(tensorboard))  # type: ignore[no-untyped-call]
