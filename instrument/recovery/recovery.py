"""What a run does about each step beyond judging its gradients: usable rates before it, and after it the state that must stay good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from instrument.events import Action
from instrument.guards.epsilon import RaisedEps
from instrument.locate.own_state import zero_states_like
from instrument.recovery.buffers import KeptBuffers
from instrument.recovery.counters import Counters
from instrument.recovery.hand_copies import HandCopies
from instrument.recovery.hand_written import HandWritten
from instrument.recovery.loss_scale import Scales
from instrument.recovery.rates import LARGEST, Lent, Rates, Unusable
from instrument.recovery.rollback import MIB, Rollback
from instrument.recovery.state import OutsideWrites, zero_spoilt_parameters, zero_spoilt_state
from instrument.recovery.training_objects import TrainingObjects
from instrument.recovery.verdict import Verdicts
from instrument.runtime import without_function_modes
from latent_drift.errors import GiveUpError
from latent_drift.numerics.finite import is_finite

if TYPE_CHECKING:
    from instrument.run import Run


class Recovery:
    """The parts of a run that keep it alive."""

    def __init__(self, run: Run) -> None:
        config = run.config
        self._act = config.act
        self._mends = config.recovery.nonfinite_parameters == "zero"
        self._only_records = config.gradient.nonfinite == "record"
        self.holds_counters: bool = config.act and config.recovery.hold_counters
        self.training = TrainingObjects()
        self.buffers = KeptBuffers(self.training)
        self.counters = Counters()
        self.rates = Rates(config)
        self.raised_eps = RaisedEps()
        self.rollback = Rollback(run)
        self.hand_copies = HandCopies()
        self.hand_written = HandWritten()
        self.scales = Scales()
        self.verdicts = Verdicts(wanted=config.recovery.replay)
        self._outside = OutsideWrites()
        self._failures: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._was_good = False

    # Before a step ----------------------------------------------------------------------------------------------------

    def before_step(self, run: Run, optimizer: Optimizer) -> tuple[Lent, bool]:
        """Make rates and state usable for this step; returns what was lent to it, and whether it has to be skipped: there is no usable rate."""
        lent, unusable = self.rates.lend(optimizer)
        for found in unusable:
            self._note_rate(run, optimizer, found)
        if not self._act:
            return lent, False
        if self.rollback.is_on:
            self.rollback.before_step(run, optimizer)
        if self._outside.happened(optimizer):
            self._mend_state(run, optimizer)
        return lent, bool(unusable) and any(found.used is None for found in unusable)

    def _note_rate(self, run: Run, optimizer: Optimizer, found: Unusable) -> None:
        name = type(optimizer).__name__
        if found.given < 0.0:
            done = "0 was used for this step: a negative rate climbs the loss"
        elif found.used is None:
            done = "there is no usable one from before, the step was skipped"
        else:
            refused = found.given < LARGEST  # a number that could be used, and was
            why = "an update with it made the parameters explode" if refused else "the last usable one is taken"
            done = f"{why}: {found.used:g} was used for this step"
        if not self._act:
            done = "nothing was altered"
        message = f"{name} has a learning rate of {found.given:g}; {done}"
        if not math.isfinite(found.given):
            run.search.blame_births()
        action: Action = "observed" if not self._act else "repaired" if found.used is not None else "skipped"
        run.note("NS512", action, "learning rate", message=message)

    def _mend_state(self, run: Run, optimizer: Optimizer) -> None:
        if not self._mends:
            return
        count = zero_spoilt_state(optimizer)
        if count:
            message = (
                f"{count} elements of {type(optimizer).__name__}'s state were NaN or Inf before its step; what it remembers of them was set to 0"
            )
            run.note("NS807", "zeroed", "step", message=message)

    # After a step -----------------------------------------------------------------------------------------------------

    def after_step(self, run: Run, optimizer: Optimizer, *, skipped: bool, failed: bool) -> GiveUpError | None:
        """See to buffers, parameters and the last good state; returns the error to raise once the step has been counted.

        Args:
            skipped: the step was left out or put back.
            failed: it was skipped, or its loss or gradient was not finite.
        """
        self.counters.step_finished(optimizer, skipped=skipped)
        if failed or self.verdicts.recording:
            self.verdicts.step_finished()
        if not self._act:
            return None
        self.put_buffers_back(run, failed=failed)
        if not failed:
            self._was_good = True
            if self.rates.backoff is not None:
                self.rates.step_went_well()
            self._outside.after_step(optimizer)
            if self._failures:
                self._failures.pop(optimizer, None)
            if self.rollback.is_on:
                self.rollback.went_well(run, optimizer, run.step_number(optimizer))
            return None
        failures = self._failures[optimizer] = self._failures.get(optimizer, 0) + 1
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        give_up = self._recover(run, optimizer, parameters, failures)
        self._outside.after_step(optimizer, failed=True)
        return give_up

    def failures_in_a_row(self, optimizer: Optimizer) -> int:
        """How many of this optimizer's latest steps failed, one after the other."""
        return self._failures.get(optimizer, 0)

    def after_update_by_hand(self, run: Run, leaves: Sequence[Tensor], *, failed: bool) -> GiveUpError | None:
        """The same for a script that updates by hand: it is called when the gradients are there and the update is still to come."""
        if failed or self.verdicts.recording:
            self.verdicts.step_finished()
        if not self._act:
            return None
        self.put_buffers_back(run, failed=failed)
        restored = self.hand_copies.look(leaves)
        if restored:
            run.search.blame_births()  # a number that the update itself made: its gradient was finite
            message = f"an update by hand made {restored} tensors non-finite; they were put back as they were before it"
            forgotten = zero_states_like(leaves)
            message += f", and {forgotten} numbers that the update remembers of them were set to 0" if forgotten else ""
            run.note("NS508", "rolled-back", "update", message=message)
        if not failed and not restored:
            self._was_good = True
            if self.rollback.is_on:
                self.rollback.went_well(run, None, run.tally.steps)
            return None
        return self._recover(run, None, [leaf for leaf in leaves if leaf.is_leaf], 1)

    def _recover(self, run: Run, optimizer: Optimizer | None, parameters: list[Tensor], failures: int) -> GiveUpError | None:
        with torch.no_grad(), without_function_modes():
            broken = [p for p in parameters if not is_finite(p)]
        if self.rollback.is_on:
            try:
                rolled_back = self.rollback.failed(run, optimizer, broken=bool(broken))
            except GiveUpError as error:
                return error
            if rolled_back:
                run.history.outcome = "rolled-back"
                run.tally.rolled_back += 1
                factor = self.rates.factor
                message = f"{self.rollback.describe()}; the learning rate is {factor:g} times its own for now"
                run.note("NS506", "rolled-back", "rollback", message=message)
                return None
        # A flipped exponent bit leaves a finite number that no step survives: what still fails after that is looked at for it.
        if (broken or failures == 2) and not self._only_records:
            self._mend_parameters(run, parameters, overflowing=failures >= 2)
        return None

    def _mend_parameters(self, run: Run, parameters: list[Tensor], *, overflowing: bool) -> None:
        at_entry = "" if self._was_good else " from the beginning: they were loaded or initialised so"
        if not self._mends:
            run.note("NS804", "observed", "step", message=f"parameters hold NaN or Inf{at_entry}; no good state is kept to return to")
            return
        mended, lost = zero_spoilt_parameters(parameters, overflowing=overflowing)
        if mended:
            what = "NaN, Inf or numbers whose square overflows" if overflowing else "NaN or Inf"
            message = f"{len(mended)} parameters held {what}{at_entry}, put there by no step; those elements were set to 0"
            run.note("NS804", "zeroed", "step", x=mended[0], message=message)
        if lost:
            advice = "load another checkpoint, or let recovery.rollback keep good states"
            message = f"{len(lost)} parameters are NaN or Inf for the most part{at_entry}; that cannot be mended: {advice}"
            run.note("NS804", "observed", "step", x=lost[0], message=message)

    def put_buffers_back(self, run: Run, *, failed: bool) -> None:
        """Restore buffers that a forward pass has spoilt."""
        restored = self.buffers.look(failed=failed)
        if restored:
            shown = ", ".join(f"{type(module).__name__}.{name}" for module, name in restored[:3])
            more = f" and {len(restored) - 3} more" if len(restored) > 3 else ""
            message = f"{len(restored)} buffers had become NaN or Inf ({shown}{more}); they were put back as they were after the last good step"
            run.note("NS808", "rolled-back", "buffer", message=message)

    def before_raise(self, run: Run) -> None:
        """An exception is about to end the training: what a handler saves after it is to be finite."""
        if not self._act:
            return
        self.put_buffers_back(run, failed=True)
        parameters = [p for optimizer in list(run.optimizers) for group in optimizer.param_groups for p in group["params"]]
        with torch.no_grad(), without_function_modes():
            broken = not all(is_finite(p) for p in parameters)
        if broken:
            self._mend_parameters(run, parameters, overflowing=False)

    def at_exit(self, run: Run) -> None:
        """The script's last forward pass and its last update by hand: no step comes after them."""
        if not self._act:
            return
        self.put_buffers_back(run, failed=False)
        restored = self.hand_copies.put_back()
        if restored:
            run.search.blame()
            message = f"the last update by hand made {restored} tensors non-finite; they were put back as they were before it"
            run.note("NS508", "rolled-back", "update", message=message)

    def facts(self) -> dict[str, Any]:
        """Counts for summary.json."""
        facts: dict[str, Any] = {"counters_held": self.counters.held}
        if self.verdicts.given:
            facts["verdicts"] = [asdict(verdict) for verdict in self.verdicts.given]
        if self.rollback.is_on:
            facts["rollback"] = {
                "copies": self.rollback.copies,
                "mib": round(self.rollback.bytes / MIB, 3),
                "seconds": round(self.rollback.seconds, 4),
                "lr_factor": self.rates.factor,
            }
        return facts
