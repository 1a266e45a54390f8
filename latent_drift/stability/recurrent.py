"""Training recurrent networks: truncated backpropagation through time with guarded steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.numerics.gradients import clip_by_global_norm_, gradients_of
from latent_drift.numerics.shards import joined_norm
from latent_drift.stability.calling import LossFunction, map_tensors
from latent_drift.stability.monitor import StabilityMonitor


def train_rnn_stable(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction | None = None,
    *,
    window: int = 35,
    max_grad_norm: float | None = 1.0,
    batch_first: bool = True,
    carry_state: bool = False,
    monitor: StabilityMonitor | None = None,
) -> dict[str, Any]:
    """One pass over `data` with truncated backpropagation through time.

    Args:
        model: (inputs, state) -> (output, state), with state None at the start, as torch's recurrent layers; tuples and dicts of tensors are fine.
        data: pairs of inputs (batch, time, ...) and targets, per time step (batch, time, ...) or per sequence (batch, ...).
        optimizer: stepped once a window.
        loss_fn: (output, targets) -> scalar; cross entropy over the last axis for integer targets, mean squared error else.
        window: time steps through which the gradient flows.
        max_grad_norm: global norm to clip to; None does not clip.
        batch_first: whether time is axis 1, else 0.
        carry_state: whether the state goes on from one pair to the next (a stream that was cut), else each sequence starts anew.
        monitor: told losses and gradients.

    Returns:
        `losses` and `grad_norms` (before clipping) per window, `skipped` (windows whose loss or gradient was not finite), `windows`, `loss` (mean).

    Raises:
        UsageError: the model does not return (output, state), or window is below 1.

    *Numerics*: the state is detached between windows, so memory and gradient path are bounded; after a skipped window it starts anew, so
    that a NaN in it does not poison every later one. With per-sequence targets only the last window of a sequence has a loss.

    *Source*: Williams and Peng 1990; Pascanu, Mikolov and Bengio 2013 for the clipping.

    >>> import torch
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__(); self.rnn = torch.nn.GRU(2, 8, batch_first=True); self.head = torch.nn.Linear(8, 1)
    ...     def forward(self, x, state=None):
    ...         y, state = self.rnn(x, state); return self.head(y), state
    >>> net = Net(); data = [(torch.randn(4, 100, 2), torch.randn(4, 100, 1))]
    >>> result = train_rnn_stable(net, data, torch.optim.SGD(net.parameters(), lr=0.01), window=40)
    >>> result["windows"], result["skipped"]
    (3, 0)
    """
    if window < 1:
        raise UsageError(f"train_rnn_stable: window must be at least 1; got {window}")
    loss_fn = _sequence_loss if loss_fn is None else loss_fn
    time = 1 if batch_first else 0
    model.train()
    losses: list[float] = []
    norms: list[float] = []
    skipped, windows = 0, 0
    state: Any = None
    for inputs, targets in data:
        if not carry_state or _batch_of(state, inputs, batch_first) is False:
            state = None
        length = inputs.shape[time]
        per_step = targets.dim() > time and targets.shape[time] == length and targets.dim() >= 2
        for start in range(0, length, window):
            stop = min(start + window, length)
            piece = inputs.narrow(time, start, stop - start)
            optimizer.zero_grad(set_to_none=True)
            result = model(piece, state)
            if not (isinstance(result, tuple) and len(result) == 2):
                raise UsageError(f"train_rnn_stable: the model must return (output, state); got {type(result).__name__}")
            output, state = result
            state = map_tensors(torch.Tensor.detach, state)
            if not per_step and stop < length:
                continue
            windows += 1
            if per_step:
                loss = loss_fn(output, targets.narrow(time, start, stop - start))
            else:
                loss = loss_fn(output.select(time, output.shape[time] - 1) if output.dim() > 2 else output, targets)
            value = float(loss.detach())
            if monitor is not None:
                monitor.check_loss(value)
            norm = math.nan
            if math.isfinite(value):
                torch.autograd.backward(loss)
                gradients = gradients_of(model)
                norm = joined_norm(gradients)
            if math.isfinite(norm):
                if monitor is not None:
                    monitor.log_gradient_stats(model)
                if max_grad_norm is not None:
                    clip_by_global_norm_(gradients, max_grad_norm, norm=norm)
                optimizer.step()
                losses.append(value)
                norms.append(norm)
            else:
                skipped += 1
                state = None
                optimizer.zero_grad(set_to_none=True)
            if monitor is not None:
                monitor.step_update()
    mean = math.fsum(losses) / len(losses) if losses else math.nan
    return {"losses": losses, "grad_norms": norms, "skipped": skipped, "windows": windows, "loss": mean}


def _sequence_loss(output: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return F.mse_loss(output, targets)
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1))


def _batch_of(state: Any, inputs: Tensor, batch_first: bool) -> bool | None:
    """Whether a carried state fits the next batch's size; None if there is none to say."""
    while isinstance(state, (tuple, list)) and state:
        state = state[0]
    if not isinstance(state, Tensor) or state.dim() < 2:
        return None
    return inputs.shape[0 if batch_first else 1] in state.shape[:-1]
