"""Faults that show in the activations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from latent_drift.stability.calling import accuracy_of, logits_of
from latent_drift.stability.diagnosis.fault import Fault

_DEAD, _SATURATED = 0.5, 0.5


def nonfinite_parameters(model: nn.Module) -> list[Fault]:
    """Parameters and buffers with NaN or Inf."""
    faults = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            faults.append(
                Fault(
                    "nonfinite_parameters",
                    name,
                    f"{count} of {tensor.numel()} elements are NaN or Inf",
                    "Load the last good checkpoint; guard the steps with stable_training_step",
                )
            )
    return faults


def activation_faults(stats: dict[str, dict[str, Any]]) -> list[Fault]:
    """Non-finite outputs (the first only: the rest follow from it), dead ReLUs, saturated sigmoids, tanhs and inner softmaxes."""
    for name, row in stats.items():
        if row["has_nan"] or row["has_inf"]:
            what = " and ".join(w for w, key in (("NaN", "has_nan"), ("Inf", "has_inf")) if row[key])
            return [
                Fault(
                    "nonfinite_activation",
                    name,
                    f"the output of this {row['layer']} is the first that holds {what}",
                    "Look at its weights' scale and at the range of its input",
                )
            ]
    faults = []
    last = next(reversed(stats), None)
    for name, row in stats.items():
        if row["layer"] in ("ReLU", "ReLU6") and row["dead_fraction"] > _DEAD:
            faults.append(
                Fault(
                    "dead_relu",
                    name,
                    f"{row['dead_fraction']:.0%} of its units are 0 for every sample",
                    "Lower the learning rate or the biases' offset, initialise anew, or use LeakyReLU or GELU",
                )
            )
        if row["layer"] in ("Sigmoid", "Tanh") and name != last and row["saturated_fraction"] > _SATURATED:
            faults.append(
                Fault(
                    "saturated_sigmoid",
                    name,
                    f"{row['saturated_fraction']:.0%} of this {row['layer']}'s outputs are within 1 % of its limits",
                    "Scale the weights before it down (Xavier), or normalise its input",
                )
            )
        if row["layer"] == "Softmax" and name != last and row["saturated_fraction"] > 0.95:
            faults.append(
                Fault(
                    "saturated_softmax",
                    name,
                    f"{row['saturated_fraction']:.0%} of its rows give one entry more than 0.999",
                    "Divide the scores by the square root of their width, or normalise queries and keys",
                )
            )
    return faults


def saturated_output(output: Any, labels: Any, loss: float) -> list[Fault]:
    """Class probabilities of 0 and 1 that are mostly wrong: a loss many times that of guessing."""
    logits = logits_of(output, labels)
    if logits is None:
        return []
    classes = logits.shape[1]
    probabilities = torch.softmax(logits.detach().double(), 1).amax(1)
    confident = float((probabilities > 0.999).double().mean())
    wrong = 1.0 - accuracy_of(logits, labels)
    if confident > 0.9 and loss > 3 * math.log(classes) and wrong > 0.5:
        return [
            Fault(
                "saturated_softmax",
                "output",
                f"{confident:.0%} of rows are sure beyond 0.999, {wrong:.0%} are wrong: loss {loss:.4g}, log({classes}) = {math.log(classes):.3g}",
                "Scale the last layer down, or start its weights at 0",
            )
        ]
    return []
