"""One guarded run: its config, its events, its step count, and what has to be remembered between guards."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from instrument.callsite import module_path, user_site
from instrument.circumstances import Circumstances
from instrument.events import CONSEQUENCES, Action, Event, EventLog, Site
from instrument.guards.exp import bounds_by_op, thresholds_by_op
from instrument.guards.kept_parameters import KeptParameters
from instrument.guards.parameter_names import parameter_names
from instrument.guards.step import _STEPPING
from instrument.history import History
from instrument.layer_norms import LayerNorms
from instrument.locate.amplification import Amplification, Amplifier
from instrument.locate.births import Birth, Births
from instrument.locate.compiled import Compiled
from instrument.locate.graph import is_bad
from instrument.locate.origin import feeding_parameters
from instrument.locate.signs import Signs
from instrument.locate.suspects import Located, Suspects
from instrument.locate.trends import Trend, trend_of
from instrument.locate.watch import Watch
from instrument.policy import Policy
from instrument.recovery.recovery import Recovery
from instrument.report import folder as report_folder
from instrument.report.terminal import summary_table
from instrument.runtime import without_function_modes
from instrument.subscriptions import OnEvent, OnStep, Subscriptions
from latent_drift.config import StabilityConfig
from latent_drift.errors import NumericalError
from latent_drift.numerics.finite import summarise
from latent_drift.numerics.gradients import GradientHistory
from patches.findings import FINDINGS


@dataclass(frozen=True, slots=True)
class _Deferred:
    """A flag that is still on its device: read together with the others, once a step."""

    flag: Tensor
    code: str
    action: Action
    op: str
    site: Site | None
    dtype: str
    shape: tuple[int, ...]


_graph_task = torch._C._current_graph_task_id  # -1 outside backward

TIGHTEST = 4  # at a sixteenth of the exponent's range nothing ordinary overflows any more


@dataclass(slots=True)
class Tally:
    """Counts of a run: optimizer steps, those skipped, skipped in a row, clipped, and how often the last good state was put back."""

    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    clipped: int = 0
    rolled_back: int = 0


class Run:
    """What `with stable() as run` gives: `run.events`, `run.summary()`, `run.save(folder)`.

    It fills while the block is open and stays readable afterwards.
    """

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        self.policy = Policy(config)
        self.log = EventLog(config.anomaly.max_events)
        self.tally = Tally()
        self.history = History(config.anomaly.history_steps)
        self.layers = LayerNorms()
        self.subscriptions = Subscriptions(self.log)
        self.circumstances = Circumstances()
        self.intercepted: tuple[str, ...] = ()
        self.active_config = ExitStack()
        self.foreign_patches: tuple[str, ...] = ()
        self._armed: set[tuple[str, int]] = set()
        self._fired: dict[tuple[str, int], None] = {}  # in order
        self._bounded_at: set[tuple[str, int]] = set()
        self.optimizers: WeakSet[torch.optim.Optimizer] = WeakSet()
        self.backward_calls = 0
        self.updates_by_hand = False
        self.scaled_loss: weakref.ref[Tensor] | None = None
        self._births = Births()
        self.kept = KeptParameters()
        self.recovery = Recovery(self)
        self._blamed = False
        self._explained = False
        self._first_cause: Event | None = None
        self.watch = Watch(config.anomaly.watch_steps)
        self.compiled = Compiled()
        self.suspects = Suspects()
        self.signs = Signs(
            spike_ratio=config.gradient.spike_ratio,
            warn_norm=config.gradient.warn_norm,
            dead_steps=config.anomaly.dead_steps,
            checks=config.anomaly.checks,
        )
        self.amplification = Amplification()
        self._amplifier: Event | None = None
        self._trend: Trend | None = None
        self._deferred: list[_Deferred] = []
        self._lock = threading.RLock()  # a signal's handler may write the report on the thread that holds it
        self.exp_bounds = bounds_by_op(self.policy, tightness=0)
        self.exp_threshold = thresholds_by_op(self.exp_bounds)
        self.smallest_exp_bound = self.exp_bounds
        self.tightness = 0
        self._histories: WeakKeyDictionary[torch.optim.Optimizer, GradientHistory] = WeakKeyDictionary()
        self._optimizer_steps: WeakKeyDictionary[torch.optim.Optimizer, int] = WeakKeyDictionary()

    # What guards call -------------------------------------------------------------------------------------------------

    def site(self) -> Site | None:
        """The line of the user's own code that is running."""
        return user_site()

    def note(
        self,
        code: str,
        action: Action,
        op: str,
        *,
        message: str,
        site: Site | None = None,
        x: Tensor | None = None,
        parameter: str | None = None,
        fired: bool = False,
    ) -> Event:
        """Record one occurrence, at the user's line that is running unless another is given.

        Args:
            x: the tensor whose dtype, shape and range the event shows. It is read only for the first occurrence at a line.
            fired: this guard made or found a bad number in the forward pass: should the step fail all the same, the line is guarded more tightly.
        """
        site = site if site is not None else self.site()
        if fired and site is not None:
            self._fired[site.file, site.line] = None
        known = self.log.known((code, action, op, site and site.file, site and site.line, parameter))
        event = self.log.record(self._event(code, action, op, message, site, parameter, {} if known else self._facts(x)))
        if site is not None and (action == "repaired" or (fired and action == "bounded")):
            # Plain, the script would have died here, or the non-finite number would have been born here: backward through it would have been NaN
            # even where a mask hides it.
            learned = action == "repaired" or (x is not None and x.requires_grad and torch.is_grad_enabled())
            self._births.add(Birth(code, op, site, message, event=event, always=learned))
        return event

    def _facts(self, x: Tensor | None) -> dict[str, Any]:
        if x is None:
            return {}
        seen = summarise(x)
        ranges = {"dtype": seen.dtype, "shape": seen.shape, "minimum": seen.minimum, "maximum": seen.maximum}
        return ranges | {"nan": seen.nan, "inf": seen.posinf + seen.neginf, "module": module_path()}

    def _event(
        self,
        code: str,
        action: Action,
        op: str,
        message: str,
        site: Site | None,
        parameter: str | None,
        facts: dict[str, Any],
        step: int | None = None,
        trend: str | None = None,
    ) -> Event:
        return Event(
            code=code,
            name=FINDINGS[code].name,
            action=action,
            op=op,
            file=site.file if site else None,
            line=site.line if site else None,
            function=site.function if site else None,
            source=site.source if site else None,
            message=message,
            step=self.tally.steps if step is None else step,
            parameter=parameter,
            trend=trend,
            config_version=self.config.version,
            config_sha256=self.config.sha256,
            config_digest=self.config.digest,
            profile=self.config.profile,
            **facts,
        )

    def born(self, code: str, op: str, *, message: str, x: Tensor | None = None, site: Site | None = None, weak: bool = False) -> None:
        """Remember that an operation gave a non-finite number for finite inputs. That is legal (log(0) = -inf in a mask), so it is an event only
        if this step's loss or gradient turns out non-finite: then the first such place is named as the origin."""
        site = site if site is not None else self.site()
        if site is not None and not self._births.is_harmless(site):
            self._fired[site.file, site.line] = None
            if self.policy.act:
                self.kept.keep(self.optimizers)
            facts = self._facts(x) if self._births.wants_facts(site) else {}
            if facts and x is not None:
                facts["parameters"] = tuple(parameter_names(_made_from(x)))
            self._births.add(Birth(code, op, site, message, facts, weak, _graph_task() != -1))

    def pause_recording(self) -> Callable[[], None]:
        """Let what happens from here on leave no trace in the log, until the function that is returned is called: a replay is no part of the run."""
        kept = self.log, self._births, dict(self._fired)
        self.log, self._births = EventLog(), Births()

        def resume() -> None:
            self.log, self._births, self._fired = kept

        return resume

    def is_armed(self, site: Site | None) -> bool:
        """True if this line made a bad number that spoiled a step before: what the ordinary rules leave alone there is bounded from then on.

        A checkpoint runs the forward pass again inside backward and compares the two: a line that was armed in between, by the loss of this very
        step, does there what it did the first time.
        """
        if not self._armed or site is None:
            return False
        place = (site.file, site.line)
        if _graph_task() != -1:
            return place in self._bounded_at
        if place in self._armed:
            self._bounded_at.add(place)
            return True
        return False

    @property
    def blamed(self) -> bool:
        """Whether this step's loss or gradient is known not to be finite."""
        return self._blamed

    def blame(self, roots: Sequence[Any] = ()) -> None:
        """This step's loss or gradient is not finite: name the first place that made a bad number, and guard such places more tightly from now on.

        If none is known, the graph behind `roots` is read, and the next steps are watched operation by operation, within the config's budget.

        Args:
            roots: the non-finite loss, or what goes into one. Without them the loss was finite and its gradient is not.
        """
        if not self._blamed:
            self.recovery.verdicts.judge(self)  # before anything is armed or put back: a replay is to meet what the step met
        self.put_parameters_back()
        if self._blamed:
            return
        self._blamed = True
        self.compiled.failed()
        self._trend = self._trend or trend_of(self.history.leading_here())
        new = [place for place in self._fired if place not in self._armed]
        origin = self._births.origin(loss_is_finite=not roots)
        # Infinite data may be a mask; the graph knows whether something else was made in it.
        unexplained = (origin is None and not new) or (origin is not None and origin.weak)
        located = self.suspects.look(roots, self.tally.steps, self.site()) if unexplained else None
        if located is not None:
            self._record_located(located)
        elif origin is not None and not (origin.weak and self.suspects.pending is not None):
            self._explained = True
            if origin.event is None:
                code, message, trend = self._cause_of(origin.code, origin.message, origin.site)
                self._name(self._event(code, "observed", origin.op, message, origin.site, None, origin.facts, trend=trend))
            else:
                self._first_cause = self._first_cause or origin.event
            self.suspects.drop()
        elif new:
            # What a guard mended at a line was not enough: that line is where it began.
            fired = (e for place in new for e in self.log if (e.file, e.line) == place and e.code not in CONSEQUENCES)
            self._first_cause = self._first_cause or next(fired, None)
        pending = self.suspects.pending
        entered = "NS804" in {origin and origin.code, located and located.suspect.code, pending and pending.code}
        if entered and self.config.repair_raising and self.policy.act and not _STEPPING:
            with torch.no_grad(), without_function_modes():
                self._mend_parameters()
        found = self._births.unbounded()
        # What was armed before and fired again did not suffice: something after it fails too. What is known and comes again may be mended.
        if found:
            self.watch.finish(mend=self.policy.act and any(birth.code in {"NS803", "NS805"} for birth in found))
        elif not new and (not self._explained or self.policy.act):
            self.watch.start(self)
        if self._fired:
            # Lines that were bounded already and failed again were not bounded tightly enough for what follows them: sums, squares, products.
            self.tightness = max(1, self.tightness) if new else min(self.tightness + 1, TIGHTEST)
            self._armed.update(new)
            self.smallest_exp_bound = bounds_by_op(self.policy, tightness=self.tightness)
            self.exp_threshold = thresholds_by_op(self.smallest_exp_bound)

    def blame_births(self) -> None:
        """A number that is not finite arrived where no loss or gradient shows it, in a learning rate: if one was born in this step, it is that."""
        if self._births.origin() is not None:
            self.blame()

    def meet_graph(self, roots: Sequence[Any]) -> None:
        """A backward pass begins: if a node of an earlier step's graph is wanted, its line may be known from this one."""
        if self.suspects.pending is not None:
            located = self.suspects.meet(roots, self.watch)
            if located is not None:
                self._record_located(located)
                self.watch.finish(mend=False)

    def _record_located(self, located: Located) -> None:
        suspect = located.suspect
        facts = suspect.facts if located.module is None else {**suspect.facts, "module": located.module}
        self._explained = True
        code, message, trend = self._cause_of(suspect.code, suspect.message, located.site)
        self._name(self._event(code, "observed", suspect.op, message, located.site, None, facts, step=suspect.step, trend=trend))

    def _mend_parameters(self) -> None:
        """Set what is not finite in parameters that came in so to 0: while it is there every step fails."""
        met = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]] + self.kept.leaves()
        bad = [p for p in met if is_bad(p)]
        if bad:
            names = ", ".join(parameter_names(bad[:3])) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            self.note("NS804", "repaired", "parameter", message=f"what was not finite in {len(bad)} parameters ({names}) was set to 0")
            for p in bad:
                p.data.copy_(torch.nan_to_num(p.detach(), nan=0.0, posinf=0.0, neginf=0.0))

    def _name(self, event: Event) -> None:
        """Record an origin; the first of the run is the first cause."""
        event = self.log.record(event)
        self._first_cause = self._first_cause or event

    def _cause_of(self, code: str, message: str, site: Site | None) -> tuple[str, str, str | None]:
        """The code, the message and the trend of an origin. A line whose results grew from call to call is an exploding recurrence."""
        before = None if self._trend is None else self._trend.text
        grown = None if site is None else self.watch.recurrence_at(site)
        if grown is None:
            return code, message, before
        said = f"within the step the result of this line {grown.over('call')}: an exploding recurrence"
        return "NS806" if code == "NS805" else code, f"{message}; {said}", said if before is None else f"{said}; {before}"

    def _tell_trend(self) -> None:
        """Say the trend at the line that steps. A learning rate that grew without bound is the cause, wherever the numbers overflowed."""
        if self._trend is not None:
            trend, self._trend = self._trend, None
            event = self.note("NS512", "warned", "step", message=f"before this failure {trend.text}")
            if trend.is_runaway:
                self._first_cause = event

    @property
    def share(self) -> float:
        """The share of the dtype's exponent range that a result may use at a line that spoiled a step: a half at first, half of that again each
        time it did not suffice."""
        return 0.5**self.tightness

    def ceiling(self, dtype: torch.dtype) -> float:
        """What replaces a result in `dtype` that overflowed, at a line that spoiled a step."""
        return float(torch.finfo(dtype).max ** self.share)

    def limit(self, dtype: torch.dtype) -> float:
        """The largest result in `dtype` that is left alone at such a line: anything finite at first, less once that did not suffice."""
        return float(torch.finfo(dtype).max ** min(1.0, 2.0 * self.share))

    def within(self, x: Tensor) -> Tensor:
        """A result that is to replace a non-finite one, bounded so that sums and products of such results stay finite."""
        largest = self.ceiling(x.dtype)
        return x.clamp(-largest, largest)

    def allows(self, op: str, site: Site | None = None) -> bool:
        """Whether the config's allow-list says that a non-finite value is meant here: by `file.py:line`, `file.py`, operation or module path, with *
        as a wildcard. Asked only where something was found."""
        patterns = self.config.anomaly.allow
        if not patterns:
            return False
        names = [op]
        site = site if site is not None else self.site()
        if site is not None:
            for file in (site.file, Path(site.file).name):
                names += [file, f"{file}:{site.line}"]
        module = module_path()
        if module is not None:
            names.append(module)
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

    def unrepaired(self, event: Event) -> None:
        """An anomaly that nothing mended: warn or raise, as `anomaly.action` says.

        Raises:
            NumericalError: the config says to raise.
        """
        action = self.config.anomaly.action
        if action == "record":
            return
        cause = self.first_cause or event
        text = f"{event.message} (first cause: {cause.where} {cause.code} {cause.name}: {cause.message}). {FINDINGS[cause.code].remedy}"
        if action == "raise":
            self.recovery.before_raise(self)
            raise NumericalError(text)
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def defer(self, flag: Tensor, code: str, action: Action, op: str, site: Site | None, x: Tensor) -> None:
        """Keep a flag on its device until the step reads all of them at once."""
        if site is not None:
            self._fired[site.file, site.line] = None
        self._deferred.append(_Deferred(flag, code, action, op, site, str(x.dtype).removeprefix("torch."), tuple(x.shape)))
        if len(self._deferred) >= 4096:
            self.read_deferred()

    def read_deferred(self) -> None:
        """Read the flags left on devices, in one transfer for each device, and record those that are set."""
        if not self._deferred:
            return
        with self._lock:
            pending, self._deferred = self._deferred, []
        by_device: dict[torch.device, list[_Deferred]] = {}
        for item in pending:
            by_device.setdefault(item.flag.device, []).append(item)
        for items in by_device.values():
            for item, is_set in zip(items, torch.stack([i.flag for i in items]).tolist(), strict=True):
                if is_set:
                    self.note(
                        item.code, item.action, item.op, site=item.site, message=f"{item.op} on {item.dtype}{list(item.shape)}: found on the device"
                    )

    def step_number(self, optimizer: torch.optim.Optimizer) -> int:
        """Which step of the run the one under way is, counted from 1; with several optimizers that is the most that any of them took."""
        return max(self.tally.steps, self._optimizer_steps.get(optimizer, 0) + 1)

    def step_finished(self, optimizer: torch.optim.Optimizer, *, skipped: bool) -> None:
        """Count a step; with several optimizers a step of the run is the most that any of them took."""
        count = self._optimizer_steps.get(optimizer, 0) + 1
        self._optimizer_steps[optimizer] = count
        self.optimizers.add(optimizer)
        tally = self.tally
        tally.steps = max(tally.steps, count)
        self._look_for_signs(optimizer, skipped)
        if self._trend is not None:
            self._tell_trend()
        self._forget_step(healthy=not skipped)
        if skipped:
            tally.skipped += 1
            tally.skipped_in_a_row += 1
        else:
            tally.skipped_in_a_row = 0
        if self.subscriptions:
            self.subscriptions.tell(self.history.latest())

    def _look_for_signs(self, optimizer: torch.optim.Optimizer, skipped: bool) -> None:
        """Record the step, and say what in it is a warning. A gradient that was clipped has its own event."""
        history = self.history
        loss, norm, outcome = history.loss, history.norm, history.outcome
        history.finish_step(self.tally.steps, optimizer, skipped=skipped)
        if skipped or norm is None:
            return
        sign = self.signs.look(optimizer, None if loss is None else float(loss), norm if outcome == "stepped" else None, history)
        if sign is not None:
            self.note(sign.code, "warned", "step", message=sign.message)

    def update_by_hand_finished(self, leaves: Sequence[Tensor]) -> None:
        """Without an optimizer each backward counts as a step: its gradients are there, the update of `leaves` is still to come.

        Raises:
            GiveUpError: the last good state was put back as often as the config allows.
        """
        self.tally.steps += 1
        give_up = self.recovery.after_update_by_hand(self, leaves, failed=self._blamed)
        self.history.finish_step(self.tally.steps, None)
        if self._trend is not None:
            self._tell_trend()
        self._forget_step(healthy=not self._blamed)
        if self.subscriptions:
            self.subscriptions.tell(self.history.latest())
        if give_up is not None:
            raise give_up

    def _forget_step(self, *, healthy: bool) -> None:
        self._fired.clear()
        healthy = healthy and not self._blamed
        self._births.finish_step(healthy=healthy)
        # Failures in a row are one cascade; after a step that went well the next one is a new question.
        self._explained = self._explained and not healthy
        if healthy:
            self.kept.drop()
        else:
            self.put_parameters_back()
        self._blamed = False
        self.watch.step_finished()
        surveyed = self.amplification.step_finished()
        if surveyed is not None:
            self._name_amplifier(*surveyed)

    def _name_amplifier(self, norm: float, place: Amplifier, is_forward: bool) -> None:
        """Say what made a clipped gradient large. It is the first cause of a run in which clipping kept everything finite."""
        if place.site is None:
            return
        what = f"the largest number behind it, {place.size:.4g}, is" if is_forward else f"it grew most, {place.size:.4g} times, by what is"
        message = f"after a gradient norm of {norm:.4g}: {what} made here by {place.op}"
        event = self._event("NS507", "observed", place.op, message, place.site, None, self._facts(place.value))
        self._amplifier = self._amplifier or self.log.record(event)

    def close(self) -> None:
        """The block closes: what was found and has no line is said without one."""
        self.watch.stop()
        self.amplification.stop()
        self.recovery.at_exit(self)
        self.recovery.verdicts.close(self)
        if self.put_parameters_back():
            self.blame()  # the script's last update: no loss comes after it that would have failed
        self._tell_trend()
        located = self.suspects.give_up()
        if located is not None and all(event.code in CONSEQUENCES for event in self.log):
            self._record_located(located)
        self.watch.stop()  # what was found at the end may have asked for a watch that no step will follow

    def put_parameters_back(self) -> bool:
        """Restore parameters that an update made non-finite where no optimizer's guard stood, if copies from before it are held; returns whether
        any was."""
        restored = self.kept.put_back()
        if restored:
            message = f"an update outside of any optimizer's step made {len(restored)} parameters non-finite; they were put back as they were before"
            self.note("NS508", "rolled-back", "update", message=message)
        return bool(restored)

    def mark_scaled(self, loss: Tensor) -> None:
        """This loss carries a GradScaler's factor: an overflow in it or in its gradients is the scaler's search, no anomaly."""
        self.scaled_loss = weakref.ref(loss)

    def is_first_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """True until `optimizer` has finished a step in this run."""
        return optimizer not in self._optimizer_steps

    def gradient_history(self, optimizer: torch.optim.Optimizer, length: int) -> GradientHistory:
        """The gradient norms of this optimizer's steps in this run."""
        if optimizer not in self._histories:
            self._histories[optimizer] = GradientHistory(length)
        return self._histories[optimizer]

    # What people read -------------------------------------------------------------------------------------------------

    @property
    def events(self) -> tuple[Event, ...]:
        """Every distinct event so far, in the order of first occurrence, each with its count."""
        self.read_deferred()
        return tuple(self.log)

    @property
    def first_cause(self) -> Event | None:
        """The event that began it: where the first bad number was born, whether it spoiled a step or was mended before it could; else what made the
        first gradient that was too large. A learning rate that grew without bound comes before all of them. None where nothing happened."""
        named, events = self._first_cause, self.events
        if named is None:
            causes = (e for e in events if e.code not in CONSEQUENCES and e.action != "warned")
            return next(causes, None) or self._amplifier or next(iter(events), None)
        if named.code == "NS512":
            return named
        # An overflow that was bounded in an earlier step, or earlier in this one, is where it began without a guard.
        mended = (e for e in events if e.action in ("bounded", "repaired") and e.code not in CONSEQUENCES and not e.nan and not e.inf)
        first = min(mended, key=lambda e: e.step, default=named)
        return first if first.step < named.step else named

    @property
    def interventions(self) -> int:
        """How many times a number was altered."""
        return sum(event.count for event in self.events if event.repaired)

    @property
    def rank(self) -> int | None:
        """The rank of this process in its distributed job; None alone."""
        return self.circumstances.rank

    def subscribe(self, on_event: OnEvent | None = None, on_step: OnStep | None = None) -> Callable[[], None]:
        """Follow the run: be called after each step with its `StepRecord`, and with every `Event` that occurred in it; returns what ends that.

        Both are called between steps, never inside one. An exception that they raise leaves `optimizer.step()` once the step is whole; see
        `instrument.subscriptions`. An event's `count` is the run's total so far.
        """
        return self.subscriptions.add(on_event, on_step)

    def summary(self, width: int | None = None) -> str:
        """A table for the terminal: what was done, where, how often.

        Args:
            width: columns of the terminal; without it no line is broken. `file.py:line` never is.
        """
        return summary_table(self.events, self.facts(), self.first_cause, width=width)

    def facts(self) -> dict[str, Any]:
        """Counts and identity of the run, as in summary.json."""
        cause = self.first_cause
        return {
            "config": self.config.identity,
            "version": self.config.version,
            "sha256": self.config.sha256,
            "digest": self.config.digest,
            "profile": self.config.profile,
            "overrides": dict(_plain_items(self.config.overrides)),
            **asdict(self.tally),
            **self.recovery.facts(),
            "watched_steps": self.watch.steps,
            "not_watched": [asdict(function) for function in self.compiled.unseen],
            "first_cause": None if cause is None else cause.where,
            "first_cause_code": None if cause is None else cause.code,
            "events": len(self.log),
            "events_dropped": self.log.dropped,
            "interventions": self.interventions,
            "intercepted": len(self.intercepted),
            "foreign_patches": list(self.foreign_patches),
            **self.circumstances.facts(),
        }

    def save(self, folder: str | Path) -> Path:
        """Write events.jsonl, timeline.jsonl, summary.json and report.html into `folder` (made if missing); returns the folder.

        In a distributed job each process writes into its own `rank-N` there and joins what is there into one report.

        Raises:
            OSError: the folder cannot be made or written.
        """
        target = Path(folder)
        report_folder.save(self, target)
        return target

    def __repr__(self) -> str:
        return f"<Run {self.config.identity}: {self.tally.steps} steps, {len(self.log)} events, {self.interventions} interventions>"


def _made_from(x: Tensor) -> list[Tensor]:
    """The parameters that a tensor was computed from, or itself if it is one."""
    if x.grad_fn is None:
        return [x] if x.requires_grad else []
    return feeding_parameters(x.grad_fn)


def _plain_items(mapping: Any) -> Iterator[tuple[str, Any]]:
    return ((str(key), value) for key, value in mapping.items())
