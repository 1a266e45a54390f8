"""One guarded run: its config, its events, its step count, and what has to be remembered between guards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from instrument.armed_lines import ArmedLines
from instrument.by_optimizer import ByOptimizer
from instrument.callsite import is_users, module_path, user_frame, user_site
from instrument.circumstances import Circumstances
from instrument.deferred_flags import DeferredFlags, Flag
from instrument.events import Action, Event, EventLog, Site
from instrument.forked import Forked
from instrument.guards.kept_parameters import KeptParameters
from instrument.history import History
from instrument.layer_norms import LayerNorms
from instrument.locate.births import Birth, Births
from instrument.locate.compiled import CompiledFunction
from instrument.locate.ranges import Ranges
from instrument.locate.search import Search
from instrument.locate.signs import Signs
from instrument.policy import Policy
from instrument.recovery.recovery import Recovery
from instrument.report import folder as report_folder
from instrument.report.terminal import summary_table
from instrument.subscriptions import OnEvent, OnStep, Subscriptions
from instrument.warning_sites import give_at
from latent_drift.config import StabilityConfig
from latent_drift.errors import NumericalError
from latent_drift.numerics.finite import summarise
from latent_drift.numerics.gradients import GradientHistory
from latent_drift.numerics.repeated_norm import RepeatedNorm
from patches.findings import FINDINGS


@dataclass(slots=True)
class Tally:
    """Counts of a run: optimizer steps, those skipped, skipped in a row, clipped, and how often the last good state was put back."""

    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    clipped: int = 0
    rolled_back: int = 0


class KnownOptimizers(WeakSet[torch.optim.Optimizer]):
    """The optimizers of a run. One that a thread is making at this moment has no groups yet, and is passed over."""

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        known = [reference() for reference in list(self.data)]  # type: ignore[attr-defined]  # at once: another thread may add one
        return iter([optimizer for optimizer in known if optimizer is not None and hasattr(optimizer, "param_groups")])


class Run:
    """What `with stable() as run` gives: `run.events`, `run.summary()`, `run.save(folder)`.

    It fills while the block is open and stays readable afterwards.
    """

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        self.policy = Policy(config)
        self.log = EventLog(config.anomaly.max_events)
        self.forked = Forked()
        self.tally = Tally()
        self.history = History(config.anomaly.history_steps)
        self.layers = LayerNorms()
        self.ranges = Ranges(config.anomaly.history_steps)
        self.subscriptions = Subscriptions(self.log)
        self.circumstances = Circumstances()
        self.intercepted: tuple[str, ...] = ()
        self.active_config = ExitStack()
        self.foreign_patches: tuple[str, ...] = ()
        self.armed = ArmedLines(self.policy)
        self.optimizers = KnownOptimizers()
        self.backward_calls = 0
        self.threads: set[int] = set()
        """Threads in which optimizers have stepped. Where there are several nothing is replayed: what is put aside for that is theirs too."""
        self.updates_by_hand = False
        self.scaled_loss: weakref.ref[Tensor] | None = None
        self.kept = KeptParameters()
        self.recovery = Recovery(self)
        self.search = Search(self)
        self.signs = Signs(
            spike_ratio=config.gradient.spike_ratio,
            warn_norm=config.gradient.warn_norm,
            dead_steps=config.anomaly.dead_steps,
            checks=config.anomaly.checks,
        )
        self._is_closing = False
        self.deferred = DeferredFlags()
        self._histories: WeakKeyDictionary[torch.optim.Optimizer, GradientHistory] = WeakKeyDictionary()
        self._norms: ByOptimizer[RepeatedNorm] = ByOptimizer()
        self._optimizer_steps: ByOptimizer[int] = ByOptimizer()

    # What guards call -------------------------------------------------------------------------------------------------

    def site(self) -> Site | None:
        """The line of the user's own code that is running. Once the script is over that is none: what runs then is whoever ran it."""
        site = user_site()
        return None if self._is_closing and site is not None and not is_users(site.file) else site

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
        trend: str | None = None,
    ) -> Event:
        """Record one occurrence, at the user's line that is running unless another is given.

        Args:
            x: the tensor whose dtype, shape and range the event shows. It is read only for the first occurrence at a line.
            fired: this guard made or found a bad number in the forward pass: should the step fail all the same, the line is guarded more tightly.
            trend: how the steps before led here.
        """
        site = site if site is not None else self.site()
        if fired:
            self.armed.fire(site)
        known = self.log.known((code, action, op, site and site.file, site and site.line, parameter))
        said = message if trend is None else f"{message}; {trend}"
        facts = {} if known else self.facts_of(x)
        event = self.log.record(self.event(code, action, op, said, site, parameter=parameter, facts=facts, trend=trend))
        if site is not None and (action == "repaired" or (fired and action == "bounded")):
            # Plain, the script would have died here, or the non-finite number would have been born here: backward through it would have been NaN
            # even where a mask hides it.
            learned = action == "repaired" or (x is not None and x.requires_grad and torch.is_grad_enabled())
            self.search.births.add(Birth(code, op, site, message, event=event, always=learned))
        return event

    def facts_of(self, x: Tensor | None) -> dict[str, Any]:
        """The fields of an event that describe a tensor, read from it now."""
        if x is None:
            return {}
        seen = summarise(x)
        ranges = {"dtype": seen.dtype, "shape": seen.shape, "minimum": seen.minimum, "maximum": seen.maximum}
        return ranges | {"nan": seen.nan, "inf": seen.posinf + seen.neginf, "module": module_path()}

    def event(
        self,
        code: str,
        action: Action,
        op: str,
        message: str,
        site: Site | None,
        *,
        parameter: str | None = None,
        facts: Mapping[str, Any] = MappingProxyType({}),
        step: int | None = None,
        trend: str | None = None,
    ) -> Event:
        """An event of this run, not recorded yet."""
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

    def pause_recording(self) -> Callable[[], None]:
        """Let what happens from here on leave no trace in the log, until the function that is returned is called: a replay is no part of the run."""
        log, births, fired = self.log, self.search.births, self.armed.fired_so_far()
        self.log, self.search.births = EventLog(), Births()

        def resume() -> None:
            self.log, self.search.births = log, births
            self.armed.forget_since(fired)

        return resume

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
        frame = user_frame()
        if frame is not None:
            give_at(frame, text, RuntimeWarning)

    def defer(self, value: Tensor, code: str, action: Action, op: str, site: Site | None, x: Tensor) -> None:
        """Keep a flag on its device until the step reads all of them at once."""
        self.armed.fire(site)
        if self.deferred.add(Flag(value, code, action, op, site, str(x.dtype).removeprefix("torch."), tuple(x.shape))):
            self.read_deferred()

    def read_deferred(self) -> None:
        """Record what the flags left on devices say."""
        for flag in self.deferred.take_set():
            self.note(flag.code, flag.action, flag.op, site=flag.site, message=flag.message)

    def step_number(self, optimizer: torch.optim.Optimizer) -> int:
        """Which step of the run the one under way is, counted from 1; with several optimizers that is the most that any of them took."""
        return max(self.tally.steps, self._optimizer_steps.get(id(optimizer), 0) + 1)

    def step_finished(self, optimizer: torch.optim.Optimizer, *, skipped: bool) -> None:
        """Count a step; with several optimizers a step of the run is the most that any of them took."""
        key = id(optimizer)
        if key not in self._optimizer_steps:
            self._optimizer_steps.put(optimizer, 0)
            self.optimizers.add(optimizer)
        count = self._optimizer_steps[key] = self._optimizer_steps[key] + 1
        tally = self.tally
        if count > tally.steps:
            tally.steps = count
        self._look_for_signs(optimizer, skipped)
        if self.search.trend is not None:
            self.search.tell_trend()
        self._forget_step(optimizer, healthy=not skipped)
        if skipped:
            tally.skipped += 1
            tally.skipped_in_a_row += 1
        else:
            tally.skipped_in_a_row = 0
        if self.subscriptions.subscribers:
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
        give_up = self.recovery.after_update_by_hand(self, leaves, failed=self.search.blamed)
        self.history.finish_step(self.tally.steps, None)
        self.search.tell_trend()
        self._forget_step(None, healthy=not self.search.blamed)
        if self.subscriptions.subscribers:
            self.subscriptions.tell(self.history.latest())
        if give_up is not None:
            raise give_up

    def _forget_step(self, optimizer: torch.optim.Optimizer | None, *, healthy: bool) -> None:
        healthy = healthy and not self.search.blamed
        self.armed.finish_step()
        self.ranges.step_finished(healthy=healthy)
        if healthy:
            self.kept.drop()
        else:
            self.put_parameters_back()
        self.search.step_finished(optimizer, healthy=healthy)

    def close(self) -> None:
        """The block closes: what was found and has no line is said without one."""
        self._is_closing = True
        self.search.stop_looking()
        self.recovery.at_exit(self)
        self.recovery.verdicts.close(self)
        if self.put_parameters_back():
            self.search.blame()  # the script's last update: no loss comes after it that would have failed
        self.search.close()
        self.forked.close(self)

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

    @property
    def has_steps(self) -> bool:
        """Whether an optimizer that is still alive has finished a step in this run."""
        return bool(self._optimizer_steps)

    def is_first_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """True until `optimizer` has finished a step in this run."""
        return id(optimizer) not in self._optimizer_steps

    def gradient_norm(self, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> float:
        """The global norm of this optimizer's gradients, as they are."""
        norm = self._norms.get(id(optimizer))
        if norm is None:
            norm = self._norms.put(optimizer, RepeatedNorm())
        return norm(gradients)

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
        """The event that began it; None where nothing happened. See `Search.first_cause`."""
        return self.search.first_cause

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
            "steps_of_all_optimizers": self.recovery.counters.taken + self.tally.skipped,
            "watched_steps": self.search.watch.steps,
            "not_watched": [asdict(function) for function in self.search.compiled.unseen],
            "not_in_float32": [asdict(function) for function in self._half_in_compiled()],
            "first_cause": None if cause is None else cause.where,
            "first_cause_code": None if cause is None else cause.code,
            "events": len(self.log),
            "events_dropped": self.log.dropped,
            "interventions": self.interventions,
            "intercepted": len(self.intercepted),
            "foreign_patches": list(self.foreign_patches),
            **self.circumstances.facts(),
        }

    def _half_in_compiled(self) -> tuple[CompiledFunction, ...]:
        """Compiled functions of a run in which half precision is asked to be widened: `softmax.upcast`, or `amp.float32_ops` under a loss scale."""
        asked = self.policy.upcast or (self.policy.act and self.scaled_loss is not None and bool(self.config.amp.float32_ops))
        return self.search.compiled.functions if asked else ()

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


def _plain_items(mapping: Any) -> Iterator[tuple[str, Any]]:
    return ((str(key), value) for key, value in mapping.items())
