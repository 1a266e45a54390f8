"""Where a gradient that had to be clipped became large: the operation of the forward pass behind it, looked for in one of the next steps.

Clipping keeps the numbers finite, so nothing is ever born; what would have overflowed is still the line that people have to mend. After a clip
far above the warning norm the next step is surveyed: which operation that a gradient passes made the largest number, and, where no number is
large, whose backward enlarged the gradient most. A survey alters nothing, costs about what watching costs, and comes again only when the norm
has grown a thousandfold.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
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

AS_LARGE = 0.5  # of a factor: sums over a broadcast operand take some of it away
ENLARGES = 2.0  # what hands its argument on has a ratio of 1
MOST_STEPS_BACK = 16

GROWN = 1e3
"""How much larger a norm than the one surveyed is a new question."""


@dataclass(slots=True)
class Amplifier:
    """The most that one operation made, in a survey."""

    size: float = 0.0
    op: str = ""
    site: Site | None = None
    value: Tensor | None = None
    ratio: float = 0.0
    """By how much the largest number of the result exceeds the largest of what went in."""


class _Survey(TorchFunctionMode):
    """Remembers the operation with the largest result, and the one whose backward enlarged a gradient most."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = Amplifier()
        self.backward = Amplifier()
        self.source: Amplifier | None = None
        self._enlargers: list[tuple[float, Amplifier]] = []
        self._made: dict[Any, Amplifier] = {}
        """What the graph's nodes of this step gave."""
        self._nodes: list[Any] = []
        self.done = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if self.done or _STEPPING or not isinstance(result, Tensor):
            return result
        if result.grad_fn is None or not is_plain(result) or not result.is_cpu or not result.numel():
            return result
        name = getattr(function, "__name__", str(function))
        size = largest_magnitude(result).item()
        taken = max((largest_magnitude(x).item() for x in tensors_in((args, kwargs or {})) if is_plain(x) and x.numel()), default=0.0)
        made = Amplifier(size, name, user_site(), result.detach(), size / taken if taken > 0.0 else 0.0)
        self._made.setdefault(result.grad_fn, made)
        if size > self.forward.size:
            self.forward = made
        if taken > 0.0 and math.isfinite(size):
            self._enlargers.append((made.ratio, made))
            if len(self._enlargers) > MOST_ENLARGERS:
                self._enlargers.remove(min(self._enlargers, key=lambda item: item[0]))
        self._nodes.append(result.grad_fn)
        result.grad_fn.register_hook(self._enlarged(name, made.site, len(self._nodes) - 1))
        return result

    def finish(self) -> None:
        """The step is over: look no further, and let its graph go."""
        self.done = True
        self._made.clear()
        self._nodes.clear()

    def begin_anew(self) -> None:
        """What was seen belongs to the loss of another optimizer. What was made for both losses is still known where a gradient meets it."""
        self.forward, self.backward, self.source = Amplifier(), Amplifier(), None
        self._enlargers.clear()

    @property
    def enlarger(self) -> Amplifier:
        """Of the operations on the way to the largest number, the one that enlarged what it took in most: a product of something large with something
        ordinary is larger still, but did not make it so."""
        near = [item for item in self._enlargers if item[1].size >= math.sqrt(self.forward.size)]
        return max(near, key=lambda item: item[0], default=(0.0, self.forward))[1]

    def _enlarged(self, name: str, site: Site | None, index: int) -> Callable[..., None]:
        # A hook that held its own node would keep the graph alive.
        def look(grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]) -> None:
            arrived, left = _largest(grad_outputs), _largest(grad_inputs)
            if not self.done and arrived > 0.0 and left / arrived > self.backward.size:
                self.backward = Amplifier(left / arrived, f"{name} backward", site)
                self.source = self._operand(self._nodes[index], left / arrived)

        return look

    def _operand(self, node: Any, factor: float) -> Amplifier | None:
        """The operation that made the operand by which a product's backward multiplies (the 1 / variance of a squared error): it made the gradient
        large, the product did not. None where no operand is as large as that."""
        found: Amplifier | None = None
        for _ in range(MOST_STEPS_BACK):
            behind = [(following, self._made.get(following)) for following, _ in node.next_functions]
            large = [(following, made) for following, made in behind if made is not None and made.size >= AS_LARGE * factor]
            if not large:
                return found
            node, found = max(large, key=lambda item: item[1].size)
            if found.ratio > ENLARGES:
                return found
        return found


def _largest(gradients: tuple[Tensor | None, ...]) -> float:
    return max((largest_magnitude(g).item() for g in gradients if g is not None and is_plain(g) and g.numel()), default=0.0)


class Amplification:
    """Surveys of one run."""

    def __init__(self) -> None:
        self.opened: OpenMode[_Survey] | None = None
        self._surveyed_norm = 0.0
        self._began = False
        self._of: weakref.ref[Optimizer] | None = None

    def begin(self, optimizer: Optimizer, norm: float, warn_norm: float) -> None:
        """A gradient of this norm was clipped, of this optimizer's. A mode that somebody else has open stays the topmost, and compiled code would be
        compiled anew for one: there nothing is surveyed."""
        if norm <= max(warn_norm, self._surveyed_norm * GROWN) or self.opened is not None or not OpenMode.may_open():
            return
        if "torch._dynamo" in sys.modules and torch._dynamo.utils.counters["frames"]:
            return
        self._surveyed_norm = norm
        self._began = False
        self._of = weakref.ref(optimizer)
        self.opened = OpenMode(_Survey())

    def step_finished(self, optimizer: Optimizer | None) -> tuple[float, Amplifier, bool] | None:
        """After a whole step was surveyed: the norm that asked for it, the place, and whether that is of the forward pass."""
        if self.opened is None:
            return None
        if not self._began:
            self._began = True  # the step that was clipped ends; the next one is surveyed from its beginning
            return None
        survey = self.opened.mode
        wanted = None if self._of is None else self._of()
        if wanted is not None and optimizer is not wanted and not survey.done:
            survey.begin_anew()
            return None
        survey.finish()
        self.settle()
        is_forward = survey.forward.size >= LARGE
        if not is_forward and survey.source is not None:
            return self._surveyed_norm, survey.source, True
        return self._surveyed_norm, survey.enlarger if is_forward else survey.backward, is_forward

    def settle(self) -> None:
        """Take a finished survey off the stack of modes, if it is the topmost."""
        if self.opened is not None and self.opened.mode.done and self.opened.leave():
            self.opened = None

    def stop(self) -> None:
        """The block closes."""
        if self.opened is not None:
            self.opened.mode.finish()
            self.settle()
