"""The last good state, and the return to it.

Parameters, buffers, optimizer state, schedules, loss scale and random streams are copied every `snapshot_every` good steps, and put back, bit for
bit, after `rollback_after` failed steps in a row. The learning rate is then backed off (`rates`), more with each return to the same copy, and
comes back over `lr_recovery_steps` good steps. After `retries` returns to one copy the run gives up.

The script's own counters and its place in the data are not turned back: it goes on with the next batch, as those do who restart by hand
from a checkpoint and leave the bad batches out. The random streams return with the first rollback to a copy only: with a second one the
same draws would make the same failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from instrument.runtime import without_function_modes
from latent_drift.errors import GiveUpError, LatentDriftError
from latent_drift.numerics.finite import is_finite
from latent_drift.numerics.snapshot import RandomSnapshot, Snapshot, copied

if TYPE_CHECKING:
    from instrument.run import Run

MIB = 1024.0 * 1024.0


class _Leaves:
    """Copies of tensors that are nobody's parameters."""

    def __init__(self, leaves: Iterable[Tensor], storage: Any) -> None:
        self._copies = [(leaf, copied(leaf, storage)) for leaf in leaves]

    @torch.no_grad()
    def restore(self) -> None:
        for leaf, copy in self._copies:
            if leaf.shape == copy.shape:
                leaf.data.copy_(copy)

    def bytes(self) -> int:
        return sum(int(copy.nbytes) for _, copy in self._copies)


class _Copy:
    """One good state: what it is made of decides whether it can be refreshed in place."""

    def __init__(self, parts: tuple[list[Any], list[Optimizer], list[Any]], leaves: list[Tensor], storage: Any) -> None:
        modules, optimizers, others = parts
        self.key = _identity(parts, leaves)
        self._snapshot = Snapshot(modules, optimizers, others, random=False, storage=storage)
        self._random = RandomSnapshot()
        self._storage = storage
        self._bare = leaves
        self._leaves = _Leaves(leaves, storage)
        # What the optimizer holds and no module does: a bare parameter, the weight of a model that was never met.
        held = {id(p) for m in modules for p in m.parameters()}
        self._loose = _loose(optimizers, held)
        self._loose_copies = _Leaves(self._loose, storage)
        self._written = [t for m in modules for t in (*m.parameters(), *m.buffers()) if not t.is_inference()]

    def refresh(self) -> None:
        self._snapshot.refresh()
        self._random.refresh()
        self._leaves = _Leaves(self._bare, self._storage)
        self._loose_copies = _Leaves(self._loose, self._storage)

    def restore(self, *, random: bool) -> None:
        # Unseen by autograd: a graph that saved some of these may still be waiting for its backward pass (of two models that train in turn).
        with torch.autograd._unsafe_preserve_version_counter(tuple(self._written)):  # type: ignore[attr-defined]
            self._snapshot.restore()
        self._leaves.restore()
        self._loose_copies.restore()
        if random:
            self._random.restore()

    def bytes(self) -> int:
        return self._snapshot.bytes() + self._leaves.bytes() + self._loose_copies.bytes()


def _loose(optimizers: list[Optimizer], held: set[int]) -> list[Tensor]:
    found = {id(p): p for o in optimizers for group in o.param_groups for p in group["params"] if id(p) not in held}
    return list(found.values())


def _identity(parts: tuple[list[Any], list[Optimizer], list[Any]], leaves: list[Tensor]) -> tuple[Any, ...]:
    return tuple(tuple(map(id, part)) for part in (*parts, leaves))


class Rollback:
    """Keeps the last good state of a run and returns to it. `is_on` is False where the config keeps none."""

    def __init__(self, run: Run) -> None:
        self._settings = run.config.recovery
        self.is_on: bool = run.config.act and self._settings.rollback
        self._copy: _Copy | None = None
        self._optimizers: WeakSet[Optimizer] = WeakSet()
        self._taken_at = 0
        self._good = 0
        self._good_step = 0
        self._failing: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._failing_by_hand = 0
        self._tries = 0
        self.done = 0
        self.bytes = 0
        self.copies = 0
        self.seconds = 0.0

    def before_step(self, run: Run, optimizer: Optimizer) -> None:
        """The state that training begins with is the first good one, if it is good; so it is with each further optimizer."""
        if optimizer not in self._optimizers:
            self._optimizers.add(optimizer)
            self._take(run, run.tally.steps)

    def went_well(self, run: Run, optimizer: Optimizer | None, step: int) -> None:
        """A step was taken and looks healthy. For updates by hand, the update of the step before."""
        self._set_failing(optimizer, 0)
        if step > self._good_step:
            self._good += 1  # with several optimizers, one step of the run
        self._good_step = step
        if self._copy is None or self._good >= self._settings.snapshot_every:
            self._take(run, step)

    def failed(self, run: Run, optimizer: Optimizer | None, *, broken: bool) -> bool:
        """A step failed; returns whether the last good state was put back.

        Args:
            broken: parameters or state are not finite now, so that no further step can be a good one.

        Raises:
            GiveUpError: it was put back as often as the config allows, and fails again.
        """
        count = self._failing_count(optimizer) + 1
        self._set_failing(optimizer, count)
        self._good = 0
        if self._copy is None or (count < self._settings.rollback_after and not broken):
            return False
        settings = self._settings
        if self._tries >= settings.retries:
            raise GiveUpError(
                f"training was rolled back to the same good state (of step {self._taken_at}) {self._tries} times and failed again: going on would "
                "only spin. The events say where the first bad number came from; mend that line or the data, lower the learning rate, or raise "
                "recovery.retries."
            )
        start = time.perf_counter()
        self._tries += 1
        with torch.no_grad(), without_function_modes():
            self._copy.restore(random=self._tries == 1)
        self._set_failing(optimizer, 0)
        run.recovery.rates.back_off(settings.lr_backoff**self._tries, settings.lr_recovery_steps)
        run.kept.drop()
        if self._taken_at > 0:
            for each in self._optimizers:
                run.recovery.counters.rolled_back(each)
        self.done += 1
        self.seconds += time.perf_counter() - start
        return True

    def describe(self) -> str:
        """What the latest return was to, for the event."""
        return (
            f"the state after step {self._taken_at} was put back (return {self._tries} of {self._settings.retries} to it, {self.bytes / MIB:.3g} MiB)"
        )

    def _failing_count(self, optimizer: Optimizer | None) -> int:
        return self._failing_by_hand if optimizer is None else self._failing.get(optimizer, 0)

    def _set_failing(self, optimizer: Optimizer | None, count: int) -> None:
        if optimizer is None:
            self._failing_by_hand = count
        else:
            self._failing[optimizer] = count

    def _take(self, run: Run, step: int) -> None:
        """Copy the state, if all of it is finite."""
        start = time.perf_counter()
        training = run.recovery.training
        optimizers = list(self._optimizers)
        leaves = run.kept.leaves()
        modules = training.roots([*(p for o in optimizers for group in o.param_groups for p in group["params"]), *leaves])
        others = [*training.schedulers(optimizers), *training.scalers()]
        leaves = _leaves_outside(leaves, modules)
        with torch.no_grad(), without_function_modes():
            if not _all_finite(modules, optimizers, leaves):
                return
            try:
                if self._copy is not None and self._copy.key == _identity((modules, optimizers, others), leaves):
                    self._copy.refresh()
                else:
                    self._copy = _Copy((modules, optimizers, others), leaves, self._settings.snapshot_device)
            except LatentDriftError:  # a lazy module without a shape yet: the next occasion has one
                return
        self.bytes = self._copy.bytes()
        self._taken_at = step
        self._good = 0
        self._tries = 0
        self.copies += 1
        self.seconds += time.perf_counter() - start


def _leaves_outside(leaves: list[Tensor], modules: list[Any]) -> list[Tensor]:
    held = {id(p) for m in modules for p in m.parameters()}
    return [leaf for leaf in leaves if id(leaf) not in held]


def _all_finite(modules: list[Any], optimizers: list[Optimizer], leaves: list[Tensor]) -> bool:
    parameters = {id(p): p for m in modules for p in m.parameters()}
    parameters.update((id(p), p) for o in optimizers for group in o.param_groups for p in group["params"])
    state = [v for o in optimizers for s in o.state.values() if isinstance(s, dict) for v in s.values() if isinstance(v, Tensor)]
    return all(is_finite(x) for x in [*parameters.values(), *leaves, *state])
