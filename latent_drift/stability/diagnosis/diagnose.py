"""One batch, one loss function, and what is wrong with the model."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.stability.activations import ActivationMonitor
from latent_drift.stability.calling import Evaluation, LossFunction, accuracy_of, evaluate, logits_of, map_tensors, split_batch
from latent_drift.stability.diagnosis import backward, data, forward, trial
from latent_drift.stability.diagnosis.fault import Diagnosis, Fault
from latent_drift.stability.diagnosis.functional import FunctionalActivations
from latent_drift.stability.initialization.lsuv import undisturbed


def diagnose(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    lr: float | None = None,
    steps: int = 40,
) -> Diagnosis:
    """Name what keeps a model from training, with evidence, layer and what to do; an empty list for a healthy one.

    Args:
        model: any; parameters, gradients, buffers, modes and random states are left as they were.
        batch: (inputs, labels), or what the model takes; 100 rows and more let the labels be judged too.
        loss_fn: (output, labels) -> scalar; not needed if the model returns its loss.
        optimizer: the one in use: its learning rate is tried on a copy, and parameters it does not hold count as frozen.
        lr: a learning rate to try with Adam, if there is no optimizer.
        steps: of training, on copies, for what only training shows (0: none).

    Returns:
        A `Diagnosis`, a list of `Fault(kind, layer, evidence, advice)`, causes before consequences. Kinds: see
        `latent_drift.stability.diagnosis.fault.KINDS`.

    Raises:
        UsageError: the batch has no rows, or there is no loss.

    *Numerics*: thresholds are such that healthy models come out clean (21 of them are a test); a diagnosis costs two passes and some
    `4 * steps` training steps on copies.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.randn(32, 4); x[3, 1] = float("nan")
    >>> print(diagnose(model, (x, (x[:, 0] > 0).long()), torch.nn.functional.cross_entropy))
    NaN or Inf in the batch in inputs: 1 NaN or Inf in row 3 of 32. Drop or repair these rows before training.
    """
    inputs, labels = split_batch(batch, loss_fn)
    if any(t.dim() and len(t) == 0 for _, t in data.tensors_of(inputs, "inputs")):
        raise UsageError("diagnose: the batch has no rows")
    found = Diagnosis(forward.nonfinite_parameters(model))
    bad_rows, clean = data.nonfinite_rows(inputs, labels)
    found += bad_rows
    if clean is not None:
        inputs, labels = data.keep_rows(inputs, clean), data.keep_rows(labels, clean)
    if any(f.kind == "nonfinite_parameters" for f in found) or (clean is not None and not bool(clean.any())):
        return found
    unscaled = data.unscaled_inputs(model, inputs)
    found += unscaled
    with undisturbed(model), torch.enable_grad():
        found += _passes(model, inputs, labels, loss_fn, optimizer, lr, steps, large_inputs=bool(unscaled))
    return found


def _passes(
    model: nn.Module,
    inputs: Any,
    labels: Any,
    loss_fn: LossFunction | None,
    optimizer: torch.optim.Optimizer | None,
    lr: float | None,
    steps: int,
    *,
    large_inputs: bool,
) -> list[Fault]:
    result, stats, executed = _observed(model, inputs, labels, loss_fn)
    faults = forward.activation_faults(stats)
    if isinstance(result, Exception):
        # torch refuses some values that are not finite (a loss of NaN probabilities): then the values are the fault
        found = [f for f in faults if f.kind == "nonfinite_activation"]
        if not found:
            raise result
        return [replace(f, evidence=f"{f.evidence}; {type(result).__name__} then: {' '.join(str(result).split())[:200]}") for f in found]
    if any(f.kind == "nonfinite_activation" for f in faults):
        return faults
    faults += forward.saturated_output(result.output, labels, float(result.loss.detach()))
    if not result.loss.requires_grad:
        layer = executed[-1] if executed else "model"
        return [
            *faults,
            Fault("detached_graph", layer, "the loss has no graph", "Look for .detach(), .item(), no_grad, or requires_grad=False throughout"),
        ]
    gradients = _gradients(model, result.loss)
    held = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    cut = backward.unreached(model, gradients, executed, held)
    faults += cut
    stds = {name: row["std"] for name, row in stats.items()}
    explained = any(f.kind in ("dead_relu", "saturated_sigmoid") for f in faults)
    faults += backward.gradient_faults(model, gradients, stds, large_inputs=large_inputs, explained=explained)
    if any(f.kind == "exploding" for f in faults):
        faults = [f for f in faults if (f.kind, f.layer) != ("saturated_softmax", "output")]  # huge scores are the consequence
    if any(f.kind == "symmetric_init" for f in faults):
        faults = [f for f in faults if f.kind != "dead_relu"]  # zero weights make zero outputs: the weights are the cause
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    reference = None
    if half:
        wide = copy.deepcopy(model).float()
        reference = _gradients(wide, evaluate(wide, _float(inputs), _float(labels), loss_fn).loss)
    if not any(f.kind in ("vanishing", "dead_relu") for f in faults) or half:
        faults += backward.underflow(gradients, reference)
    if steps > 0 and not any(f.kind == "exploding" for f in faults):
        faults += _trials(model, _float(inputs), _float(labels), loss_fn, optimizer, lr, steps, result, faults)
    return faults


def _observed(
    model: nn.Module, inputs: Any, labels: Any, loss_fn: LossFunction | None
) -> tuple[Evaluation | Exception, dict[str, dict[str, Any]], list[str]]:
    """The evaluation (or what it raised), the statistics of each layer's output, and the names of the modules that ran, in order."""
    executed: list[str] = []
    result: Evaluation | Exception

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        executed.append(name)

    handles = [m.register_forward_hook(partial(note, name)) for name, m in model.named_modules()]
    try:
        with ActivationMonitor(model) as monitor, FunctionalActivations(model, monitor):
            result = evaluate(model, inputs, labels, loss_fn)
    except Exception as error:  # judged by the caller, who raises it if nothing explains it
        result = error
    finally:
        for handle in handles:
            handle.remove()
    return result, monitor.stats, list(dict.fromkeys(executed))


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """Gradients by name, without touching anyone's .grad."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True, retain_graph=True)
    return {name: g for (name, _), g in zip(named, found, strict=True)}


def _trials(
    model: nn.Module,
    inputs: Any,
    labels: Any,
    loss_fn: LossFunction | None,
    optimizer: torch.optim.Optimizer | None,
    lr: float | None,
    steps: int,
    result: Evaluation,
    found: list[Fault],
) -> list[Fault]:
    faults: list[Fault] = []

    def attempt(make: trial.OptimizerFactory, pair: tuple[Any, Any] = (inputs, labels), held_out: Any = None) -> trial.Trial:
        torch.manual_seed(0)
        return trial.run_trial(model, *pair, loss_fn, make, steps, held_out)

    def adam(rate: float) -> trial.OptimizerFactory:
        return lambda parameters: torch.optim.Adam(parameters, lr=rate)

    causes = {f.kind for f in found}
    rate = float(optimizer.param_groups[0]["lr"]) if optimizer is not None else lr
    if rate is not None and not causes & {"detached_graph", "dead_relu", "symmetric_init"}:
        faults += trial.learning_rate_faults(lambda f: attempt(trial.factory_of(optimizer, f) if optimizer is not None else adam(rate * f)), rate)
    logits = logits_of(result.output, labels)
    if logits is None:
        return faults
    split = trial.held_out_split(inputs, labels)
    attempts = [attempt(adam(r)) for r in (1e-3, 1e-2)]
    layer = next((f.layer for f in found if f.kind == "symmetric_init"), "output")
    if not faults:
        faults += trial.plateau_faults(attempts, labels, result.output, layer)
    if not faults and not causes and split is not None:
        accuracy = accuracy_of(logits, labels)
        held = [attempt(adam(r), split[0], split[1]).accuracy for r in (1e-3, 1e-2)]
        best = max((a for a in held if a is not None), default=None)
        faults += data.labels_without_signal(inputs, labels, accuracy, best, len(split[1][1]))
    return faults


def _float(value: Any) -> Any:
    return map_tensors(lambda t: t.float() if t.is_floating_point() else t, value)
