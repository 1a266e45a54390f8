"""Batch norm statistics that will not carry a model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from latent_drift.stability.calling import call_model
from latent_drift.stability.initialization.lsuv import undisturbed


@torch.no_grad()
def check_batchnorm(model: nn.Module, batch: Any = None) -> list[dict[str, Any]]:
    """Findings about the batch norms of a model: `layer, kind, evidence, advice` each; an empty list if all is well.

    Args:
        model: any; it is left exactly as it was.
        batch: if given, the model is run on it, and what each batch norm receives is looked at too.

    Kinds: `batch-of-one` (training statistics of one value per channel: the variance is 0, the output is the bias, and torch refuses some
    shapes), `constant-channel` (a running or batch variance below eps: the output amplifies rounding by 1/sqrt(eps)), `nonfinite-statistics`,
    `no-statistics` (evaluation before any training batch), `collapsed-scale` (a weight of 0: the channel's gradient is 0).

    >>> from torch import nn
    >>> norm = nn.BatchNorm1d(2).eval()
    >>> check_batchnorm(norm)[0]["kind"]
    'no-statistics'
    """
    findings: list[dict[str, Any]] = []

    def report(layer: str, kind: str, evidence: str, advice: str) -> None:
        findings.append({"layer": layer, "kind": kind, "evidence": evidence, "advice": advice})

    norms = [(name or type(m).__name__, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    for name, norm in norms:
        if norm.running_var is not None and norm.running_mean is not None:
            if not bool(norm.running_var.isfinite().all() & norm.running_mean.isfinite().all()):
                report(
                    name, "nonfinite-statistics", "running mean or variance holds NaN or Inf", "reset_running_stats(), and find the batch that did it"
                )
            seen = norm.num_batches_tracked is None or int(norm.num_batches_tracked) > 0
            if not seen and not norm.training:
                report(name, "no-statistics", "evaluation mode, and no batch was ever seen", "train first, or load the buffers with the weights")
            small = norm.running_var < norm.eps
            if seen and bool(small.any()):
                count = int(small.sum())
                report(name, "constant-channel", f"{count} running variances below eps={norm.eps:g}", "remove the channel, or feed varied data")
        if norm.weight is not None and bool((norm.weight == 0).all()):
            report(name, "collapsed-scale", "every weight is 0", "meant for the last norm of a residual branch; elsewhere the branch is dead")
    if batch is not None and norms:
        findings += _on_batch(model, batch, norms)
    return findings


class _Stop(Exception):
    """A shape that torch itself refuses was reported; the pass ends here."""


def _on_batch(model: nn.Module, batch: Any, norms: list[tuple[str, _BatchNorm]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    training = {id(m): m.training for _, m in norms}

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        values = x.numel() // max(x.shape[1], 1)
        if training[id(module)] and values == 1:
            found.append(
                {
                    "layer": name,
                    "kind": "batch-of-one",
                    "evidence": f"input of shape {tuple(x.shape)}: one value per channel",
                    "advice": "use larger batches, eval mode, or a group or layer norm",
                }
            )
            raise _Stop
        variance = x.float().var(tuple(d for d in range(x.dim()) if d != 1), correction=0)
        constant = variance < module.eps  # type: ignore[operator]
        if values > 1 and bool(constant.any()):
            found.append(
                {
                    "layer": name,
                    "kind": "constant-channel",
                    "evidence": f"{int(constant.sum())} of {x.shape[1]} channels have a batch variance below eps={module.eps:g}",
                    "advice": "the layer before is dead or saturated there; look at its output",
                }
            )

    handles = [m.register_forward_pre_hook(partial(look, name)) for name, m in norms]
    try:
        with undisturbed(model):
            call_model(model, batch)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
