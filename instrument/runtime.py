"""What a guard asks while it runs: is anybody guarding, by which numbers, and is this tensor one that a guard may look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latent_drift.numerics.limits import FLOAT_DTYPES

if TYPE_CHECKING:
    from instrument.run import Run


class Runtime:
    """The one mutable place that guards read.

    `active` is False when no `stable()` block is open: stand-ins that somebody still holds then only call through.
    `replaying` is the thread in which a forward pass is done once more to find where it failed: nothing is updated there then. Else it is 0.
    `run` is the innermost open block's. For code under compilation: `bounds` are its argument bounds, None where nothing may be altered, and
    `upcast` says whether softmax and attention compute in float32.
    """

    __slots__ = ("active", "bounds", "replaying", "run", "upcast")

    def __init__(self) -> None:
        self.active = False
        self.replaying = 0
        self.run: Run = None  # type: ignore[assignment]  # read only while active
        self.bounds: dict[str, dict[torch.dtype, float]] | None = None
        self.upcast = False


class StopReplay(BaseException):
    """A replay has met an update, or `backward`: what led there was done once more, and what follows must not be. No script catches it."""


RUNTIME = Runtime()

QUIET: set[int] = set()
"""Optimizers that are stepping now and whose update is a library's, by id: its arithmetic is judged by its outcome, operation by operation nobody
looks."""

FLOATS = frozenset(FLOAT_DTYPES)
HALVES = frozenset(dtype for dtype in FLOAT_DTYPES if dtype.itemsize == 2)
PLAIN_TYPES: frozenset[type] = frozenset({Tensor, nn.Parameter})

_dispatch_keys = torch._C._dispatch_keys
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms_active = torch._C._are_functorch_transforms_active
_STRIDED = torch.strided
_tracing = torch._C._get_tracing_state
function_modes = torch._C._is_torch_function_mode_enabled
"""True while a TorchFunctionMode is on (a default device is one): a guard's own reads then go past it."""
without_function_modes = torch._C.DisableTorchFunction


def _plain_key_sets(device: str) -> frozenset[int]:
    """The dispatch keys of ordinary dense tensors. Anything else (sparse, nested, quantised, fake, meta, a functorch or Python wrapper, a lazy
    conjugate) has others, so one integer tells them apart."""
    kinds = [torch.empty(0, device=device)]
    with torch.inference_mode():
        kinds.append(torch.empty(0, device=device))
    return frozenset(_dispatch_keys(x).raw_repr() for x in kinds)


_PLAIN = _plain_key_sets("cpu") | (_plain_key_sets("cuda") if torch.cuda.is_available() else frozenset())


def is_plain(x: Any) -> bool:
    """True for a dense tensor of a real floating dtype that no tracer, transform, mode or subclass is watching: the only kind a guard looks at."""
    return type(x) in PLAIN_TYPES and x.dtype in FLOATS and _dispatch_keys(x).raw_repr() in _PLAIN and not _dispatch_modes() and _tracing() is None


def is_readable(x: Any) -> bool:
    """`is_plain(x)`, or the same of a complex dtype: guards leave complex numbers alone, but where one went bad can be told."""
    return is_plain(x) or (type(x) in PLAIN_TYPES and x.is_complex() and _dispatch_keys(x).raw_repr() in _PLAIN and not _dispatch_modes())


def is_plain_on_cpu(x: Any) -> bool:
    """`is_plain(x) and x.is_cpu`, for the healthy path: its values can be read without waiting for a device.

    The dispatch keys are asked for only inside a transform (vmap, grad, jvp), whose wrappers look like any tensor: that call is the slowest of
    these by far, and outside of one the others tell the same. A lazy negation or zero counts as plain here: it is one to read.
    """
    if type(x) not in PLAIN_TYPES or not x.is_cpu or x.dtype not in FLOATS:
        return False
    if _transforms_active():
        return is_plain(x)
    return x.layout is _STRIDED and not x.is_nested and not _dispatch_modes() and _tracing() is None
