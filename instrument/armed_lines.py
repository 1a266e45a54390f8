"""The lines that spoiled a step: what the ordinary rules leave alone there is bounded from then on, more tightly each time that did not suffice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from instrument.events import Site
from instrument.guards.exp import bounds_by_op, thresholds_by_op
from instrument.policy import Policy

TIGHTEST = 4  # at a sixteenth of the exponent's range nothing ordinary overflows any more

Place = tuple[str, int]

_graph_task = torch._C._current_graph_task_id  # -1 outside backward
_node = torch._C._current_autograd_node  # type: ignore[attr-defined]  # whose backward is running
_now: Callable[[], int] = torch._C._autograd._get_sequence_nr  # autograd counts its nodes as forward passes make them


def time_of_forward() -> int | None:
    """None outside of backward; in it, the count of autograd's nodes when those were made whose backward is running.

    A checkpoint runs a forward pass again inside backward and compares the two, so it must do what it did the first time: what has been learnt since,
    by the loss of this very step or of another pass in it, does not count there.
    """
    if _graph_task() == -1:
        return None
    node = _node()
    return _now() if node is None else int(node._sequence_nr())


class ArmedLines:
    """Which lines are armed, and how much of a dtype's range a result may use there."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._armed: dict[Place, int] = {}  # with the time of it, in autograd's count
        self._fired: dict[Place, None] = {}  # in order
        self._tightened: list[int] = []  # the times
        self.exp_bounds = bounds_by_op(policy, tightness=0)
        self.smallest_exp_bound = self.exp_bounds
        self.exp_threshold = thresholds_by_op(self.exp_bounds)

    def fire(self, site: Site | None) -> None:
        """A guard met a bad number at this line in the step that is under way."""
        if site is not None:
            self._fired[site.file, site.line] = None

    def newly_fired(self) -> list[Place]:
        """The lines that fired in this step and are not armed, in order."""
        return [place for place in self._fired.copy() if place not in self._armed]

    def finish_step(self) -> None:
        """What fired counts for its own step alone."""
        self._fired.clear()

    def fired_so_far(self) -> dict[Place, None]:
        """What fired in this step, to be given back to `forget_since`."""
        return self._fired.copy()

    def forget_since(self, fired: dict[Place, None]) -> None:
        """Leave out what fired since `fired_so_far`: it was a replay."""
        self._fired = fired

    def tighten(self) -> None:
        """The step failed: arm the lines that fired in it. Lines that were bounded already and failed again were not bounded tightly enough for
        what follows them: sums, squares, products."""
        if not self._fired:
            return
        new = self.newly_fired()
        if len(self._tightened) < TIGHTEST and not (new and self._tightened):
            self._tightened.append(_now())
        self._armed.update(dict.fromkeys(new, _now()))
        self.smallest_exp_bound = bounds_by_op(self._policy, tightness=len(self._tightened))
        self.exp_threshold = thresholds_by_op(self.smallest_exp_bound)

    def holds(self, site: Site | None) -> bool:
        """True if this line made a bad number that spoiled a step before."""
        if not self._armed or site is None:
            return False
        since = self._armed.get((site.file, site.line))
        if since is None:
            return False
        forward = time_of_forward()
        return forward is None or since <= forward

    @property
    def tightness(self) -> int:
        """How often what armed lines were bounded at did not suffice."""
        forward = time_of_forward()
        return len(self._tightened) if forward is None else sum(since <= forward for since in self._tightened)

    @property
    def share(self) -> float:
        """The share of the dtype's exponent range that a result may use at an armed line: a half at first, half of that again each time it did
        not suffice."""
        return 0.5**self.tightness

    def ceiling(self, dtype: torch.dtype) -> float:
        """What replaces a result in `dtype` that overflowed at an armed line."""
        return float(torch.finfo(dtype).max ** self.share)

    def limit(self, dtype: torch.dtype) -> float:
        """The largest result in `dtype` that is left alone at an armed line: anything finite at first, less once that did not suffice."""
        return float(torch.finfo(dtype).max ** min(1.0, 2.0 * self.share))

    def within(self, x: Tensor) -> Tensor:
        """A result that is to replace a non-finite one, bounded so that sums and products of such results stay finite."""
        largest = self.ceiling(x.dtype)
        return x.clamp(-largest, largest)
