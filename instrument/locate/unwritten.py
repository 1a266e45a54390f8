"""Memory that was handed out and not written to: what lies in it is no result of anything.

`torch.empty` and its kin leave in their memory what was there before; after a failure that is often a NaN. A view of such memory is as unwritten
as the memory, and an operation that fills it does not read it. One that does read it gives numbers by accident: that is a fault of its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from instrument.events import Site
from instrument.runtime import is_readable
from instrument.tensors import tensors_in

HANDS_OUT = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "resize_", "resize_as_"})
"""Names of the calls whose result is unwritten."""

_FILLS = frozenset(
    {"zero_", "fill_", "copy_", "normal_", "uniform_", "exponential_", "random_", "bernoulli_", "cauchy_", "geometric_", "log_normal_"}
)


class Unwritten:
    """The memory that was handed out in the step under way."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, Site | None]] = {}  # by storage, which the tensor keeps alive

    def hand_out(self, result: Any, site: Site | None) -> None:
        """Remember what a call of `HANDS_OUT` gave, and the line of the script that asked for it."""
        if is_readable(result):
            self._held[_storage(result)] = (result.detach(), site)

    def is_view(self, name: str, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the result is the unwritten memory itself, and the call wrote nothing into it."""
        if not self._held:
            return False
        given = list(tensors_in(result))  # several for unbind, split and the like
        return bool(given) and all(is_readable(x) and _storage(x) in self._held and not is_written(name, x, args, kwargs) for x in given)

    def site_of(self, x: Tensor) -> Site | None:
        """The line that asked for the memory of `x`, None where it is other memory or the result of an operation."""
        held = self._held.get(_storage(x)) if x.grad_fn is None else None
        return None if held is None else held[1]

    def forget(self) -> None:
        """A new step begins."""
        self._held.clear()


def what_is_read(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments without what the call only writes to: `out=`, and a tensor that is filled."""
    if "out" in kwargs:
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}
    return (args[1:] if name in _FILLS else args, kwargs)


def is_written(name: str, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call wrote its result into an argument. Others may return an argument as it is: `flatten` of a matrix, `contiguous`, `to`."""
    in_place = name.startswith("__i") or (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    return result is kwargs.get("out") or (in_place and any(result is x for x in args))


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)
