"""Where a gradient that had to be clipped became large: the operation of the forward pass behind it, looked for in one of the next steps.

Clipping keeps the numbers finite, so nothing is ever born; what would have overflowed is still the line that people have to mend. After a clip
far above the warning norm the next step is surveyed: which operation that a gradient passes made the largest number, and, where no number is
large, whose backward enlarged the gradient most. A survey alters nothing, costs about what watching costs, and comes again only when the norm
has grown a thousandfold.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from instrument.callsite import user_site
from instrument.events import Site
from instrument.guards.step import _STEPPING
from instrument.locate.open_mode import OpenMode
from instrument.runtime import is_plain
from instrument.tensors import tensors_in
from latent_drift.numerics.finite import largest_magnitude

LARGE = 1e3
"""A number of the forward pass that is worth naming as such."""

MOST_ENLARGERS = 16

GROWN = 1e3
"""How much larger a norm than the one surveyed is a new question."""


@dataclass(slots=True)
class Amplifier:
    """The most that one operation made, in a survey."""

    size: float = 0.0
    op: str = ""
    site: Site | None = None
    value: Tensor | None = None


class _Survey(TorchFunctionMode):
    """Remembers the operation with the largest result, and the one whose backward enlarged a gradient most."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = Amplifier()
        self.backward = Amplifier()
        self._enlargers: list[tuple[float, Amplifier]] = []
        self.done = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if self.done or _STEPPING or not isinstance(result, Tensor):
            return result
        if result.grad_fn is None or not is_plain(result) or not result.is_cpu or not result.numel():
            return result
        name = getattr(function, "__name__", str(function))
        size = largest_magnitude(result).item()
        if size > self.forward.size:
            self.forward = Amplifier(size, name, user_site(), result.detach())
        taken = max((largest_magnitude(x).item() for x in tensors_in((args, kwargs or {})) if is_plain(x) and x.numel()), default=0.0)
        if taken > 0.0 and math.isfinite(size):
            self._enlargers.append((size / taken, Amplifier(size, name, user_site(), result.detach())))
            if len(self._enlargers) > MOST_ENLARGERS:
                self._enlargers.remove(min(self._enlargers, key=lambda item: item[0]))
        result.grad_fn.register_hook(self._enlarged(name, user_site()))
        return result

    @property
    def enlarger(self) -> Amplifier:
        """Of the operations on the way to the largest number, the one that enlarged what it took in most: a product of something large with something
        ordinary is larger still, but did not make it so."""
        near = [item for item in self._enlargers if item[1].size >= math.sqrt(self.forward.size)]
        return max(near, key=lambda item: item[0], default=(0.0, self.forward))[1]

    def _enlarged(self, name: str, site: Site | None) -> Callable[..., None]:
        def look(grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]) -> None:
            arrived, left = _largest(grad_outputs), _largest(grad_inputs)
            if not self.done and arrived > 0.0 and left / arrived > self.backward.size:
                self.backward = Amplifier(left / arrived, f"{name} backward", site)

        return look


def _largest(gradients: tuple[Tensor | None, ...]) -> float:
    return max((largest_magnitude(g).item() for g in gradients if g is not None and is_plain(g) and g.numel()), default=0.0)


class Amplification:
    """Surveys of one run."""

    def __init__(self) -> None:
        self._open: OpenMode[_Survey] | None = None
        self._surveyed_norm = 0.0
        self._began = False

    def begin(self, norm: float, warn_norm: float) -> None:
        """A gradient of this norm was clipped. A mode that somebody else has open stays the topmost, and compiled code would be compiled anew for
        one: there nothing is surveyed."""
        if norm <= max(warn_norm, self._surveyed_norm * GROWN) or self._open is not None or not OpenMode.may_open():
            return
        if "torch._dynamo" in sys.modules and torch._dynamo.utils.counters["frames"]:
            return
        self._surveyed_norm = norm
        self._began = False
        self._open = OpenMode(_Survey())

    def step_finished(self) -> tuple[float, Amplifier, bool] | None:
        """After a whole step was surveyed: the norm that asked for it, the place, and whether that is of the forward pass."""
        if self._open is None:
            return None
        if not self._began:
            self._began = True  # the step that was clipped ends; the next one is surveyed from its beginning
            return None
        survey = self._open.mode
        survey.done = True
        self.settle()
        is_forward = survey.forward.size >= LARGE
        return self._surveyed_norm, survey.enlarger if is_forward else survey.backward, is_forward

    def settle(self) -> None:
        """Take a finished survey off the stack of modes, if it is the topmost."""
        if self._open is not None and self._open.mode.done and self._open.leave():
            self._open = None

    def stop(self) -> None:
        """The block closes."""
        if self._open is not None:
            self._open.mode.done = True
            self.settle()
