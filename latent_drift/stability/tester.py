"""Five categories of checks of a model: initialisation, forward, gradient flow, mixed precision, multi-step training."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.numerics.finite import is_finite
from latent_drift.stability.activations import ActivationMonitor
from latent_drift.stability.amp import DynamicLossScaler
from latent_drift.stability.calling import LossFunction, call_model, evaluate, map_tensors, own_loss, rebuilt, split_batch
from latent_drift.stability.flow import analyze_gradient_flow
from latent_drift.stability.training import stable_training_step

CATEGORIES = ("initialisation", "forward", "gradient flow", "mixed precision", "multi-step training")

# Relative change of the loss that half precision may cause.
_HALF_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its category and name, whether it passed, and what was measured (or the exception, by type and message)."""

    category: str
    name: str
    passed: bool
    detail: str


@dataclass(slots=True)
class StabilityReport:
    """All checks of one run."""

    model: str
    device: str
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether there were checks and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def exit_status(self) -> int:
        """0 if passed, else 1."""
        return 0 if self.passed else 1

    def document(self) -> dict[str, Any]:
        """Plain data: model, device, passed, seconds, categories -> passed and checks."""
        categories = {}
        for category in CATEGORIES:
            rows = [c for c in self.checks if c.category == category]
            if rows:
                categories[category] = {"passed": all(c.passed for c in rows), "checks": [asdict(c) for c in rows]}
        return {"model": self.model, "device": self.device, "passed": self.passed, "seconds": round(self.seconds, 3), "categories": categories}

    def json(self) -> str:
        """`document()` as JSON."""
        return json.dumps(self.document(), indent=2, allow_nan=False)

    def table(self) -> str:
        """One line a check, and the outcome."""
        width = max((len(c.name) for c in self.checks), default=10)
        lines = [f"{c.category:<20} {c.name:<{width}}  {'pass' if c.passed else 'FAIL'}  {c.detail}" for c in self.checks]
        failed = sum(not c.passed for c in self.checks)
        lines.append(f"{self.model} on {self.device}: {len(self.checks) - failed} of {len(self.checks)} passed in {self.seconds:.1f} s")
        return "\n".join(lines)


@dataclass(frozen=True)
class Subject:
    """What is tested: a builder of fresh models, a source of batches, and the loss.

    Attributes:
        build: () -> model.
        batch: rows -> (inputs, labels), or what the model takes; 0 rows must be possible.
        loss_fn: None if the model returns its loss.
        name: for the report.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    loss_fn: LossFunction | None = None
    name: str = "model"

    @classmethod
    def from_factory(cls, made: Any, name: str = "model") -> Subject:
        """From what a user's factory returns: a Subject, (model, batch) or (model, batch, loss_fn). Batches of other sizes repeat the batch's rows.

        Raises:
            UsageError: something else.
        """
        if isinstance(made, Subject):
            return made
        if not (isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], nn.Module)):
            raise UsageError(f"{name}: the factory must return a Subject, (model, batch) or (model, batch, loss_fn); got {type(made).__name__}")
        model, batch = made[0], made[1]
        return cls(
            lambda: copy.deepcopy(model),
            lambda rows: map_tensors(lambda t: t[torch.arange(rows) % len(t)] if t.dim() and len(t) else t, batch),
            made[2] if len(made) == 3 else None,
            name,
        )


class _Results(dict[str, dict[str, Any]]):
    """Results by case; asked for one of the result's own keys, the answer for all cases together."""

    def __init__(self, rows: dict[str, dict[str, Any]], whole: dict[str, Any]) -> None:
        super().__init__(rows)
        self.whole = whole

    def __missing__(self, key: str) -> Any:
        return self.whole[key]

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self.whole


class StabilityTester:
    """Runs the five categories on a subject; the audit's two static tests are here too.

    Args:
        subject: what to test: a `Subject`, or a model with `batch`.
        batch: (inputs, labels) for a plain model.
        loss_fn: for a plain model that does not return its loss.
        device: where.
        steps: of the multi-step category.
        seed: of everything random.

    An exception inside a check is that check's failure, reported by type and message; it is never swallowed. Random states and the caller's
    models are left as they were.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> batch = (torch.randn(16, 4), torch.randint(3, (16,)))
    >>> StabilityTester(model, batch, torch.nn.functional.cross_entropy, steps=5).run().passed
    True
    """

    def __init__(
        self,
        subject: Subject | nn.Module,
        batch: Any = None,
        loss_fn: LossFunction | None = None,
        *,
        device: torch.device | str = "cpu",
        steps: int = 20,
        seed: int = 0,
    ) -> None:
        if isinstance(subject, nn.Module):
            if batch is None:
                raise UsageError("StabilityTester: a model needs a batch to be tested on; pass batch=(inputs, labels), or a Subject")
            subject = Subject.from_factory((subject, batch, loss_fn), type(subject).__name__)
        self.subject = subject
        self.device = torch.device(device)
        self.steps = steps
        self.seed = seed

    def run(self, categories: tuple[str, ...] = CATEGORIES) -> StabilityReport:
        """All checks of the categories, in order."""
        unknown = [c for c in categories if c not in CATEGORIES]
        if unknown:
            raise UsageError(f"StabilityTester: unknown category {', '.join(unknown)}; there are {', '.join(CATEGORIES)}")
        report = StabilityReport(self.subject.name, str(self.device))
        start = time.perf_counter()
        methods = (self._initialisation, self._forward, self._gradient_flow, self._mixed_precision, self._training)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            for category, method in zip(CATEGORIES, methods, strict=True):
                if category in categories:
                    method(report)
        report.seconds = time.perf_counter() - start
        return report

    # --- the categories -------------------------------------------------------------------------------------

    def _initialisation(self, report: StabilityReport) -> None:
        def parameters() -> str:
            bad = [n for n, p in self._model().named_parameters() if not is_finite(p)]
            _require(not bad, f"not finite: {', '.join(bad)}")
            return f"{sum(p.numel() for p in self._model().parameters())} parameters, all finite"

        def activations() -> str:
            model = self._model()
            inputs, labels = self._batch(16)
            with torch.no_grad(), ActivationMonitor(model) as monitor:
                evaluate(model, inputs, labels, self.subject.loss_fn)
            bad = [n for n, s in monitor.stats.items() if s["has_nan"] or s["has_inf"]]
            _require(not bad, f"output not finite: {', '.join(bad)}")
            stds = {n: s["std"] for n, s in monitor.stats.items() if s["elements"] > 1}
            wild = {n: s for n, s in stds.items() if s > 1e4}
            _require(not wild, f"standard deviation of the output: {', '.join(f'{n} {s:.3g}' for n, s in wild.items())}")
            return f"standard deviations from {min(stds.values(), default=0):.3g} to {max(stds.values(), default=0):.3g} over {len(stds)} layers"

        def loss() -> str:
            inputs, labels = self._batch(16)
            value = float(evaluate(self._model(), inputs, labels, self.subject.loss_fn).loss.detach())
            _require(math.isfinite(value), f"loss {value}")
            return f"loss {value:.5g}"

        self._check(report, "initialisation", "parameters", parameters)
        self._check(report, "initialisation", "activations", activations)
        self._check(report, "initialisation", "loss", loss)

    def _forward(self, report: StabilityReport) -> None:
        for name in ("tiny", "huge", "zero", "mixed", "empty batch", "single sample"):

            def case(name: str = name) -> str:
                rows = {"empty batch": 0, "single sample": 1}.get(name, 8)
                inputs, labels = self._batch(rows)
                inputs = _extreme(inputs, name, self._batch(64)[0])
                model = self._model()
                if rows <= 1:  # batch norm cannot train on one row: that is the model's right, evaluation must work
                    model.eval()
                with torch.no_grad():
                    output = self._output(model, inputs, labels)
                bad = [t for t in _floats(output) if not bool(torch.isfinite(t).all())]
                _require(not bad, f"{len(bad)} of the outputs not finite")
                largest = max((float(t.abs().max()) for t in _floats(output) if t.numel()), default=0.0)
                return f"largest output {largest:.4g}"

            self._check(report, "forward", name, case)

    def _gradient_flow(self, report: StabilityReport) -> None:
        model = self._model()

        def backward() -> str:
            inputs, labels = self._batch(16)
            torch.autograd.backward(evaluate(model, inputs, labels, self.subject.loss_fn).loss)
            flow = analyze_gradient_flow(model)
            _require(bool(flow), "no parameter has a gradient")
            _require(not flow.nonfinite, f"not finite: {', '.join(flow.nonfinite)}")
            return f"norm {flow.total_norm:.4g} over {len(flow)} parameters" + (
                f", {len(flow.without_gradient)} unused" if flow.without_gradient else ""
            )

        def spread() -> str:
            flow = analyze_gradient_flow(model)
            norms = [row["norm"] for row in flow.values() if row["norm"] > 0]
            _require(bool(norms), "every gradient is zero")
            ratio = max(norms) / min(norms)
            _require(ratio < 1e10, f"largest over smallest gradient norm {ratio:.3g}: vanishing in {', '.join(flow.vanishing[:3])}")
            return f"largest over smallest gradient norm {ratio:.3g}"

        self._check(report, "gradient flow", "finite", backward)
        self._check(report, "gradient flow", "spread", spread)

    def _mixed_precision(self, report: StabilityReport) -> None:
        reference: list[float] = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):

            def case(dtype: torch.dtype = dtype) -> str:
                value, norm, scale = self._amp_step(dtype)
                if dtype == torch.float32:
                    reference.append(value)
                    return f"loss {value:.5g}, gradient norm {norm:.4g}"
                _require(bool(reference), "float32 itself failed: nothing to compare with")
                change = abs(value - reference[0]) / max(abs(reference[0]), 1e-6)
                _require(change <= _HALF_TOLERANCE, f"loss {value:.5g} against {reference[0]:.5g} in float32: {change:.1%} apart")
                return f"loss {value:.5g} ({change:.2%} from float32), gradient norm {norm:.4g}" + (f", scale {scale:g}" if scale else "")

            self._check(report, "mixed precision", str(dtype).removeprefix("torch."), case)

    def _amp_step(self, dtype: torch.dtype) -> tuple[float, float, float]:
        """Loss, gradient norm and scale of one training step under autocast; a scaler may back off as it would in training."""
        model = self._model()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        scaler = DynamicLossScaler(device=self.device.type, enabled=dtype == torch.float16 and self.device.type != "mps")
        inputs, labels = self._batch(16)
        result: dict[str, Any] = {}
        for _ in range(16):
            torch.manual_seed(self.seed)  # sampled noise must be the same in every precision
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                loss = evaluate(model, inputs, labels, self.subject.loss_fn).loss
            value = float(loss.detach())
            _require(math.isfinite(value), f"loss {value}")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(scaler.scale_loss(loss.float()))
            scaler.unscale_gradients(optimizer)
            flow = analyze_gradient_flow(model)
            result = {"value": value, "norm": flow.total_norm, "scale": scaler.get_scale() if scaler.is_enabled() else 0.0}
            if math.isfinite(result["norm"]) or not scaler.is_enabled():
                break
            scaler.step(optimizer)
            scaler.update()
        _require(
            math.isfinite(result["norm"]), f"gradient norm {result['norm']}" + (f" even at loss scale {result['scale']:g}" if result["scale"] else "")
        )
        return result["value"], result["norm"], result["scale"]

    def _training(self, report: StabilityReport) -> None:
        def train() -> str:
            model = self._model()
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
            losses, largest, skipped = [], 0.0, 0
            for _ in range(self.steps):
                inputs, labels = self._batch(16)
                result = stable_training_step(model, inputs, labels, optimizer, self.subject.loss_fn)
                losses.append(result["loss"])
                skipped += result["skipped"]
                largest = max(largest, result["grad_norm"]) if not result["skipped"] else largest
            _require(skipped == 0, f"{skipped} of {self.steps} steps were not finite")
            bad = [n for n, p in model.named_parameters() if not is_finite(p)]
            _require(not bad, f"parameters not finite afterwards: {', '.join(bad)}")
            tail = sum(losses[-5:]) / len(losses[-5:])
            _require(tail < 10 * abs(losses[0]) + 1, f"loss went from {losses[0]:.4g} to {tail:.4g}")
            return f"{self.steps} steps, loss {losses[0]:.4g} to {tail:.4g}, largest gradient norm {largest:.4g}"

        self._check(report, "multi-step training", "AdamW, clipped", train)

    # --- parts ----------------------------------------------------------------------------------------------

    def _check(self, report: StabilityReport, category: str, name: str, check: Callable[[], str]) -> None:
        torch.manual_seed(self.seed)
        try:
            passed, detail = True, check()
        except _Failed as failure:
            passed, detail = False, str(failure)
        except Exception as error:  # whatever the model raises is the finding
            passed, detail = False, f"{type(error).__name__}: {error}"
        report.checks.append(Check(category, name, passed, " ".join(detail.split())[:300]))

    def _model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.subject.build().to(self.device).train()

    def _batch(self, rows: int) -> tuple[Any, Any]:
        return split_batch(map_tensors(lambda t: t.to(self.device), self.subject.batch(rows)), self.subject.loss_fn)

    def _output(self, model: nn.Module, inputs: Any, labels: Any) -> Any:
        """The model's output; its loss where it computes that itself."""
        if self.subject.loss_fn is None:
            return evaluate(model, inputs, labels).output
        return call_model(model, inputs)

    # --- the audit's two ------------------------------------------------------------------------------------

    @staticmethod
    def test_extreme_inputs(model: nn.Module, input_shape: tuple[int, ...], device: torch.device | str = "cpu") -> dict[str, Any]:
        """Run a model of one floating tensor on tiny, huge, zero, mixed, random and NaN-free extreme inputs of a shape.

        Returns:
            case -> `success, has_nan, has_inf, error` (None, or the exception's type and message). The four keys asked of the result itself answer
            for all cases together. Modes and random states are left as they were.

        >>> import torch
        >>> results = StabilityTester.test_extreme_inputs(torch.nn.Linear(3, 2), (4, 3))
        >>> results["zero"]["success"], results["success"]
        (True, True)
        """
        device = torch.device(device)
        copied = copy.deepcopy(model).to(device).eval()
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(*input_shape, generator=generator)
        rows: dict[str, dict[str, Any]] = {}
        for name in ("normal", "tiny", "huge", "zero", "mixed", "negative"):
            x = -base.abs() * 100 if name == "negative" else base if name == "normal" else _extreme(base, name, base)
            row: dict[str, Any] = {"success": False, "has_nan": False, "has_inf": False, "error": None}
            dtype = next((p.dtype for p in copied.parameters()), torch.float32)
            try:
                with torch.no_grad():
                    outputs = list(_floats(copied(x.to(device, dtype))))
            except Exception as error:  # reported, by type and message: it is what was asked for
                row["error"] = f"{type(error).__name__}: {error}"
            else:
                row["has_nan"] = any(bool(t.isnan().any()) for t in outputs)
                row["has_inf"] = any(bool(t.isinf().any()) for t in outputs)
                row["success"] = not (row["has_nan"] or row["has_inf"])
            rows[name] = row
        errors = [f"{name}: {row['error']}" for name, row in rows.items() if row["error"]]
        whole = {key: any(row[key] for row in rows.values()) for key in ("has_nan", "has_inf")}
        return _Results(rows, {"success": all(r["success"] for r in rows.values()), **whole, "error": "; ".join(errors) or None})

    @staticmethod
    def test_gradient_flow(model: nn.Module, input_shape: tuple[int, ...], device: torch.device | str = "cpu") -> dict[str, Any]:
        """Gradients of the mean square output on a random input of a shape.

        Returns:
            parameter -> `has_nan, has_inf, norm, max, min`; the five keys asked of the result itself answer for all parameters together.

        Raises:
            UsageError: the output does not depend on any parameter.

        >>> import torch
        >>> flow = StabilityTester.test_gradient_flow(torch.nn.Linear(3, 2), (4, 3))
        >>> sorted(flow), flow["has_nan"], flow["norm"] > 0
        (['bias', 'weight'], False, True)
        """
        device = torch.device(device)
        copied = copy.deepcopy(model).to(device)
        copied.zero_grad(set_to_none=True)
        dtype = next((p.dtype for p in copied.parameters()), torch.float32)
        x = torch.randn(*input_shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        output = copied(x)
        loss = own_loss(output)
        if loss is None:
            parts = [t.abs().float().square().mean() for t in _floats(output) if t.numel()]
            loss = torch.stack(parts).sum() if parts else None
        if loss is None or not loss.requires_grad:
            raise UsageError("test_gradient_flow: the output does not depend on any parameter; was it detached?")
        torch.autograd.backward(loss)
        rows: dict[str, dict[str, Any]] = {}
        for name, parameter in copied.named_parameters():
            if parameter.grad is None or parameter.numel() == 0:
                continue
            g = parameter.grad.double() if device.type != "mps" else parameter.grad
            rows[name] = {
                "has_nan": bool(g.isnan().any()),
                "has_inf": bool(g.isinf().any()),
                "norm": float(torch.linalg.vector_norm(g)),
                "max": float(g.max()),
                "min": float(g.min()),
            }
        values = list(rows.values())
        whole = {
            "has_nan": any(r["has_nan"] for r in values),
            "has_inf": any(r["has_inf"] for r in values),
            "norm": math.hypot(*(r["norm"] for r in values)),
            "max": max((r["max"] for r in values), default=0.0),
            "min": min((r["min"] for r in values), default=0.0),
        }
        return _Results(rows, whole)


class _Failed(Exception):
    """A check's condition that does not hold, with what was measured."""


def _require(condition: bool, detail: str) -> None:
    if not condition:
        raise _Failed(detail)


def _floats(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() or value.is_complex() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _floats(v)] if isinstance(value, (tuple, list)) else []


def _extreme(value: Any, name: str, sample: Any) -> Any:
    """Inputs made tiny, huge, zero or of mixed scales; tokens become the smallest, largest or a mixture of the sample's."""
    if isinstance(value, dict):
        return {k: _extreme(v, name, sample[k]) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return rebuilt(value, [_extreme(v, name, s) for v, s in zip(value, sample, strict=True)])
    if not isinstance(value, Tensor) or name in ("empty batch", "single sample") or value.numel() == 0:
        return value
    if not value.is_floating_point():
        if value.dtype == torch.bool:
            return value
        low, high = sample.min(), sample.max()
        if name in ("tiny", "zero"):
            return torch.zeros_like(value) + low
        if name == "huge":
            return torch.zeros_like(value) + high
        return torch.where(torch.arange(value.numel(), device=value.device).view(value.shape) % 2 == 0, low, high).to(value.dtype)
    if name == "zero":
        return torch.zeros_like(value)
    if name == "tiny":
        return value * max(1e-30, torch.finfo(value.dtype).tiny)
    if name == "huge":
        return value * 1e4
    scales = torch.tensor([1e-6, 1.0, 1e4], dtype=value.dtype, device=value.device)
    return value * scales[torch.arange(value.numel(), device=value.device).view(value.shape) % 3]
