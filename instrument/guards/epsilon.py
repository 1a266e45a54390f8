"""An optimizer's eps that is 0 in its parameters' dtype (NS301): Adam's 1e-8 in float16 divides by the square root of a second moment that
underflowed, 0 / 0.

A step that went well with such an eps is left as it was. One that did not is put back and done again with an eps that is not 0, and so are all
later steps of this optimizer; its own setting stays what the script gave.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch.optim import Optimizer

from instrument.runtime import FLOATS
from latent_drift.config import StabilityConfig

DEFAULT = 1e-8
"""torch's own, for the dtypes that can hold it."""


class RaisedEps:
    """The optimizers of a run whose eps is raised for their steps."""

    def __init__(self) -> None:
        self._raised: WeakSet[Optimizer] = WeakSet()

    def applies(self, optimizer: Optimizer) -> bool:
        """Whether this optimizer's steps are done with a raised eps already."""
        return optimizer in self._raised

    def raise_for(self, optimizer: Optimizer, config: StabilityConfig) -> str:
        """From now on raise this optimizer's eps; returns what is said of it, or "" where its eps is none that guards nothing."""
        changes = [(group["eps"], floor) for group in optimizer.param_groups if (floor := _floor(group, config)) is not None]
        if not changes:
            return ""
        self._raised.add(optimizer)
        eps, floor = changes[0]
        return f"its eps of {eps:g} guards nothing in {str(optimizer.param_groups[0]['params'][0].dtype).removeprefix('torch.')}; {floor:g} is used"

    def lend(self, optimizer: Optimizer, config: StabilityConfig) -> list[tuple[dict[str, Any], Any]]:
        """Raise eps for one step; returns what `take_back` needs."""
        lent = []
        for group in optimizer.param_groups:
            floor = _floor(group, config)
            if floor is not None:
                lent.append((group, group["eps"]))
                group["eps"] = floor
        return lent

    @staticmethod
    def take_back(lent: list[tuple[dict[str, Any], Any]]) -> None:
        """Every group has its own eps again."""
        for group, eps in lent:
            group["eps"] = eps


def _floor(group: dict[str, Any], config: StabilityConfig) -> float | None:
    """The smallest eps that guards this group's divisions, where its own is smaller."""
    eps, params = group.get("eps"), group["params"]
    if not isinstance(eps, int | float) or not params or params[0].dtype not in FLOATS:
        return None
    name = str(params[0].dtype)
    floor = max(DEFAULT, config.precision[name].division_eps) if name == "torch.float16" else DEFAULT
    return floor if eps < floor else None
