"""What a diagnosis says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

KINDS = {
    "nonfinite_data": "NaN or Inf in the batch",
    "nonfinite_parameters": "NaN or Inf in the model's own numbers",
    "nonfinite_activation": "a layer's output is not finite although its data is",
    "unscaled_inputs": "unscaled inputs, far from unit scale",
    "dead_relu": "dead ReLU units, 0 for the whole batch",
    "saturated_sigmoid": "saturated sigmoid or tanh, its outputs at their limits",
    "saturated_softmax": "saturated softmax, probabilities of 0 and 1 that are wrong",
    "detached_graph": "a detached graph, no gradient reaches layers that took part",
    "frozen_layer": "a frozen layer, which does not learn while others do",
    "exploding": "exploding gradients",
    "vanishing": "vanishing gradients",
    "symmetric_init": "symmetric initialisation, units that are copies of one another and stay so",
    "underflow": "underflow, gradients below the dtype's smallest number",
    "plateau": "a plateau, the loss stays at log(C), that of guessing",
    "learning_rate": "the learning rate is too high or too low",
    "shuffled_labels": "shuffled labels, they do not depend on the inputs",
}
"""Every kind of fault and its meaning."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One finding: its kind (a key of `KINDS`), the layer (or argument) it is in, what was measured, and what to do."""

    kind: str
    layer: str
    evidence: str
    advice: str

    def __str__(self) -> str:
        where = f" in {self.layer}" if self.layer else ""
        return f"{KINDS[self.kind]}{where}: {self.evidence}. {self.advice}."


class Diagnosis(list[Fault]):
    """The findings, causes before consequences; empty for a healthy model."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        super().__init__(faults)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self

    @property
    def kinds(self) -> list[str]:
        """The kinds found, each once, in order."""
        return list(dict.fromkeys(fault.kind for fault in self))

    def __str__(self) -> str:
        return "\n".join(map(str, self)) if self else "nothing found"
