"""The search for where a failing step's bad number was born: what guards remember, the graph, watched steps, the trend that led there."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instrument.armed_lines import Place
from instrument.callsite import is_users
from instrument.events import CONSEQUENCES, Event, Site
from instrument.guards.parameter_names import parameter_names
from instrument.guards.step import _STEPPING
from instrument.locate.amplification import Amplification, Amplifier
from instrument.locate.apart import apart
from instrument.locate.births import Birth, Births
from instrument.locate.came_in import came_in, is_masked_only
from instrument.locate.compiled import Compiled
from instrument.locate.death import code_of, first_line, is_numerical, line_of_death
from instrument.locate.made_again import MadeAgain
from instrument.locate.made_data import MadeData
from instrument.locate.origin import feeding_parameters
from instrument.locate.own_state import OwnStates
from instrument.locate.replay import Replays
from instrument.locate.scene import ends_in_nan, scenes, scenes_at_end
from instrument.locate.suspects import Located, Suspects
from instrument.locate.trends import Trend, trend_of
from instrument.locate.watch import Watch
from instrument.locate.worker_births import WorkerBirths
from instrument.runtime import RUNTIME, is_plain, without_function_modes
from instrument.tensors import is_bad
from instrument.warning_sites import Said
from latent_drift.numerics.gradients import global_norm

if TYPE_CHECKING:
    from instrument.run import Run

_graph_task = torch._C._current_graph_task_id  # -1 outside backward


class Search:
    """What is known of the step that is under way, and the first cause of the run once it is found."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.births = Births()
        self.watch = Watch(run.config.anomaly.watch_steps)
        self.compiled = Compiled()
        self.suspects = Suspects()
        self.replays = Replays()
        self.made = MadeData()
        self.states = OwnStates()
        self.worker_births = WorkerBirths()
        self.amplification = Amplification()
        self.said: list[Said] = []
        """What numpy has warned about so far."""
        self.made_again = MadeAgain()
        self.blamed = False
        """Whether this step's loss or gradient is known not to be finite."""
        self._explained = False
        self._first_cause: Event | None = None
        self._amplifier: Event | None = None
        self._amplified_at: Site | None = None
        self.trend: Trend | None = None
        """What led to this step's failure, until it is told."""
        self._failed_line: Site | None = None
        self._located_at: Place | None = None
        self._failed_at: float | None = None
        self.seconds: float | None = None
        """From the first failure to its line; None while there is none. What a guard had seen is known at once."""

    @apart
    def born(
        self,
        code: str,
        op: str,
        *,
        message: str,
        x: Tensor | None = None,
        site: Site | None = None,
        weak: bool = False,
        trend: str | None = None,
        result: Tensor | None = None,
        made_at: Site | None = None,
    ) -> None:
        """Remember that an operation gave a non-finite number for finite inputs. That is legal (log(0) = -inf in a mask), so it is an event only
        if this step's loss or gradient turns out non-finite: then the first such place is named as the origin."""
        run = self._run
        site = site if site is not None else run.site()
        if site is not None and self.births.is_harmless(site):
            self.births.latest_harmless = Birth(code, op, site, message)
            if result is not None:
                self.made.renew(result, site, op)
        elif site is not None:
            if not weak:
                run.armed.fire(site)
            if run.policy.act and not RUNTIME.replaying:
                run.kept.keep(run.optimizers)
            facts = run.facts_of(x) if self.births.wants_facts(site) else {}
            if facts and x is not None:
                facts["parameters"] = tuple(parameter_names(_made_from(x)))
            birth = Birth(code, op, site, message, facts, weak, _graph_task() != -1, trend=trend, made_at=made_at)
            self.births.add(birth)
            if result is not None:
                self.made.add(result, birth)
                self.worker_births.add(result, birth)

    @apart
    def came_in(self, op: str, x: Tensor, site: Site | None = None) -> None:
        """Remember a bad tensor that no operation of this step made: data, a parameter, or what an earlier line made bad.

        Args:
            op: the operation that takes it in.
            site: the line that does, where that is not the running one.
        """
        found = came_in(self._run, x)
        if found.site is not None:
            self.births.reopen(found.site)
        site = found.site or site
        if found.is_carried and found.made_at is not None:
            self.states.add(found.made_at)
        self.born(found.code, found.op or op, message=found.message, x=x, site=site, weak=found.weak, made_at=found.made_at)

    @apart
    def blame(self, roots: Sequence[Any] = (), *, loss_is_seen: bool = True) -> None:
        """This step's loss or gradient is not finite: name the first place that made a bad number, and guard such places more tightly from now on.

        If none is known, the graph behind `roots` is read, and the next steps are watched operation by operation, within the config's budget.

        Args:
            roots: the non-finite loss, or what goes into one. Without them the loss was finite and its gradient is not.
            loss_is_seen: False where only the gradient is: a function of torch.func gives no loss.
        """
        run = self._run
        if not self.blamed:
            run.recovery.verdicts.judge(run)  # before anything is armed or put back: a replay is to meet what the step met
        if not roots:
            run.put_parameters_back()  # before a backward pass they stay as its forward pass had them: a checkpoint does that again, and compares
        if self.blamed:
            return
        self.blamed = True
        self._begin()
        self.compiled.failed()
        self.trend = self.trend or trend_of(run.history.leading_here())
        self._failed_line = run.site()
        for birth in self.births.carried():
            if not birth.weak and birth.event is None:
                run.armed.fire(birth.site)
        fired = run.armed.newly_fired()
        origin = self.births.origin(loss_is_finite=loss_is_seen and not roots)
        # Infinite data may be a mask; the graph knows whether something else was made in it.
        unexplained = (origin is None and not fired) or (origin is not None and origin.weak)
        located = self.suspects.look(roots, run.tally.steps, run.site()) if unexplained else None
        origin = origin or self._no_longer_harmless()
        self._name_origin(origin, located, fired)
        if not self._explained and not fired and len(roots) <= 1:  # the inputs of a loss that was bounded have an event already
            self._remember()
        pending = self.suspects.pending
        entered = "NS804" in {origin and origin.code, located and located.suspect.code, pending and pending.code}
        if entered and run.config.repair_raising and run.policy.act and not _STEPPING:
            with torch.no_grad(), without_function_modes():
                self._mend_parameters()
        self._watch_what_follows(anew=bool(fired))
        if located is not None and self._comes_again(located):
            self.watch.start(run)
            self.watch.finish(mend=True)
        run.armed.tighten()

    def _comes_again(self, located: Located) -> bool:
        """Whether an operation that no guard covers spoils one loss after the other: its line is armed, and bounded from the watching mode."""
        site = located.site
        if site is None or located.suspect.code != "NS805" or not self._run.policy.act:
            return False
        place = (site.file, site.line)
        comes_again, self._located_at = place == self._located_at, place
        if comes_again:
            self._run.armed.fire(site)
        return comes_again

    def _no_longer_harmless(self) -> Birth | None:
        """What a line made in this step as it did in steps that went well, if the graph says that it is this operation that spoilt the loss now."""
        birth, pending = self.births.latest_harmless, self.suspects.pending
        if birth is None or pending is None or birth.op != pending.op:
            return None
        self.births.reopen(birth.site)
        self._run.armed.fire(birth.site)
        self.births.add(birth := replace(birth, facts=pending.facts))
        return birth

    def _name_origin(self, origin: Birth | None, located: Located | None, fired: Sequence[Place]) -> None:
        if located is not None:
            self._record_located(located)
        elif origin is not None and not (origin.weak and self.suspects.pending is not None):
            self._explained = True
            self._name_birth(origin)
        elif fired:
            # What a guard mended at a line was not enough: that line is where it began.
            known = (e for place in fired for e in self._run.log if (e.file, e.line) == place and e.code not in CONSEQUENCES)
            self._first_cause = self._first_cause or next(known, None)

    def _name_birth(self, birth: Birth) -> None:
        self._explained = True
        if birth.weak:
            self._run.armed.fire(birth.site)  # nothing else was born: then it was not meant
        if birth.event is None:
            self.made.meet(birth)
            if birth.made_at is not None:
                self.states.meet(birth.made_at)
            code, message, trend = self._cause_of(birth.code, birth.message, birth.site, birth.trend)
            message, site = _with_use(message, birth.op, birth.site, birth.made_at)
            self._name(self._run.event(code, "observed", birth.op, message, site, facts=birth.facts, trend=trend))
        else:
            self._ends()
            self._first_cause = self._first_cause or birth.event
        self.suspects.drop()
        self.replays.drop()

    @apart
    def look_behind(self, x: Tensor) -> None:
        """An operation that is watched was given numbers that are not finite, made before the watching began by operations whose graph is alive."""
        if self.suspects.pending is None and not self._explained:
            located = self.suspects.look([x], self._run.tally.steps, self._run.site())
            if located is not None:
                self._record_located(located)

    @apart
    def sight(self, x: Tensor) -> None:
        """The script itself looks at a loss that is not finite: it may stop here, so what can be known is found now."""
        if RUNTIME.replaying or self.blamed or self._explained or _graph_task() != -1:
            return
        self._begin()
        origin = self.births.origin()
        if origin is not None and not origin.weak:
            self._name_birth(origin)
            return
        self.suspects.look([x], self._run.tally.steps, self._run.site())
        self._remember()
        self._replay()

    @apart
    def end(self, error: BaseException | None = None) -> None:
        """The script ended, or dies of an exception: a loss that was not finite and came to no backward pass is looked for in what its functions
        held."""
        if self._first_cause is None and not RUNTIME.replaying and not any(e.repaired and e.code not in CONSEQUENCES for e in self._run.log):
            with without_function_modes():
                left = scenes_at_end(error)
            if left:
                origin = self.births.origin()
                if origin is not None and not origin.weak:
                    self._name_birth(origin)
                else:
                    self.replays.remember(left)
            elif error is not None and is_numerical(error):
                origin = self.births.origin()
                if origin is not None and not origin.weak:
                    self._name_birth(origin)
                elif (site := line_of_death(error)) is not None:
                    self._name_birth(
                        Birth(code_of(error), type(error).__name__, site, f"the script ends here: {type(error).__name__}: {first_line(error)}")
                    )
            elif error is None and not self._run.tally.steps and not self._run.backward_calls:
                # Nothing was differentiated (expectation maximisation, a filter), so nothing asked before.
                origin = self.births.origin()
                if origin is not None and not origin.weak and ends_in_nan(origin.site.file):
                    self._name_birth(origin)

    def _remember(self) -> None:
        with without_function_modes():
            self.replays.remember(scenes())

    def _replay(self) -> None:
        """Do what failed once more, if nothing has explained it."""
        if self.replays.is_wanted:
            birth = self.replays.look(self._run)
            if birth is not None:
                self._name_birth(birth)

    def _watch_what_follows(self, *, anew: bool) -> None:
        """Watch the next steps, or end that. What was armed before and fired again did not suffice: something after it fails too."""
        run = self._run
        found = self.births.unbounded()
        if found:
            # What is known and comes again may be mended.
            self.watch.finish(mend=run.policy.act and any(birth.code in {"NS803", "NS805"} for birth in found))
        elif not anew and (not self._explained or run.policy.act):
            self.watch.start(run)

    @apart
    def blame_births(self) -> None:
        """A number that is not finite arrived where no loss or gradient shows it, in a learning rate: if one was born in this step, it is that."""
        if self.births.origin() is not None:
            self.blame()
        elif not self._explained and (self.births.latest_harmless is not None or self.said):
            said = [Birth("NS805", "numpy", one.site, f"numpy: {one.text}") for one in _latest(self.said)]
            self._name_birth(self.births.latest_harmless or said[0])

    @apart
    def name_first(self, births: Sequence[Birth]) -> None:
        """These spoiled a step that is mended: name the first."""
        origin = next((birth for birth in births if not birth.weak and birth.event is None), None)
        if origin is not None:
            self._name_birth(origin)

    @apart
    def blame_inputs(self, inputs: Sequence[Tensor]) -> None:
        """An operation cannot take these, NaN or Inf that was made before: that is the cause. What this very line made of them is its own matter."""
        origin, site = self.births.origin(), self._run.site()
        if origin is None or site is None or (origin.site.file, origin.site.line) != (site.file, site.line):
            self.blame(inputs)

    @apart
    def meet_graph(self, roots: Sequence[Any]) -> None:
        """A backward pass begins: if a node of an earlier step's graph is wanted, its line may be known from this one."""
        if self.suspects.pending is not None:
            located = self.suspects.meet(roots, self.watch)
            if located is not None:
                self._record_located(located)
                self.watch.finish(mend=False)

    def _record_located(self, located: Located) -> None:
        suspect = located.suspect
        if located.site is not None:
            self.births.reopen(located.site)  # steps went well in spite of what this line makes, and one does not
        self.replays.drop()
        facts = suspect.facts if located.module is None else {**suspect.facts, "module": located.module}
        self._explained = True
        code, message, trend = self._cause_of(suspect.code, suspect.message, located.site)
        message, site = _with_use(message, suspect.op, located.site, suspect.made_at)
        self._name(self._run.event(code, "observed", suspect.op, message, site, facts=facts, step=suspect.step, trend=trend))

    def _mend_parameters(self) -> None:
        """Set what is not finite in parameters that came in so to 0: while it is there every step fails."""
        run = self._run
        met = [p for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]] + run.kept.leaves()
        bad = [p for p in met if is_bad(p) and not is_masked_only(p.detach())]
        if bad:
            names = ", ".join(parameter_names(bad[:3])) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            run.note("NS804", "repaired", "parameter", message=f"what was not finite in {len(bad)} parameters ({names}) was set to 0")
            for p in bad:
                p.data.copy_(torch.nan_to_num(p.detach(), nan=0.0, posinf=0.0, neginf=0.0))

    def _begin(self) -> None:
        self._failed_at = time.perf_counter() if self._failed_at is None else self._failed_at

    def _ends(self) -> None:
        if self.seconds is None and self._failed_at is not None:
            self.seconds = time.perf_counter() - self._failed_at

    def _name(self, event: Event) -> None:
        """Record an origin; the first of the run is the first cause."""
        self._ends()
        event = self._run.log.record(event)
        self._first_cause = self._first_cause or event
        run = self._run
        if run.policy.act and run.config.repair_raising and not _STEPPING:
            count = self.made.mend() + self.states.mend()
            if count:
                site = Site(event.file, event.line, event.function or "", event.source) if event.file and event.line else None
                message = f"{count} numbers of the data that this line made were not finite and were set to 0: every step that meets them fails"
                run.note("NS803", "repaired", event.op, message=message, site=site)

    def _cause_of(self, code: str, message: str, site: Site | None, trend: str | None = None) -> tuple[str, str, str | None]:
        """The code, the message and the trend of an origin. A line whose results grew from call to call is an exploding recurrence."""
        trend = trend or self._run.ranges.large_trend()
        if trend is not None:
            message = f"{message}; {trend}"
        before = "; ".join(text for text in (trend, self.trend and self.trend.text) if text) or None
        grown = None if site is None else self.watch.recurrence_at(site)
        if grown is None:
            return code, message, before
        said = f"within the step the result of this line {grown.over('call')}: an exploding recurrence"
        return "NS806" if code == "NS805" else code, f"{message}; {said}", said if before is None else f"{said}; {before}"

    @apart
    def tell_trend(self) -> None:
        """Say the trend at the line that steps. A learning rate that grew without bound is the cause, wherever the numbers overflowed."""
        trend, self.trend = self.trend, None
        if trend is not None:
            site = self._run.site()
            if site is None or not is_users(site.file):
                site = self._failed_line  # the script is over: what runs is whoever ran it
            event = self._run.note("NS512", "warned", "step", message=f"before this failure {trend.text}", site=site)
            if trend.is_runaway:
                self._first_cause = event

    def step_finished(self, optimizer: torch.optim.Optimizer | None, *, healthy: bool) -> None:
        """Forget the step that ended: of this optimizer, or an update by hand."""
        if healthy and not self._explained and self.replays.scenes:
            self._replay()  # the fault did not come again, so what followed it does not show it
        self.births.finish_step(self._run.optimizers, healthy=healthy)
        # Failures in a row are one cascade; after a step that went well the next one is a new question.
        self._explained = self._explained and not healthy
        self.blamed = False
        if self.watch.opened is not None:
            self.watch.step_finished()
        if self.amplification.opened is not None:
            surveyed = self.amplification.step_finished(optimizer)
            if surveyed is not None:
                self._name_amplifier(*surveyed)

    def settle(self) -> None:
        """A call of the script's is over: take off modes that have seen what they were to see."""
        if self.watch.opened is not None:
            self.watch.settle()
        if self.amplification.opened is not None:
            self.amplification.settle()

    def stop_looking(self) -> None:
        """The block closes: no watching mode outlives it."""
        self.watch.stop()
        self.amplification.stop()

    @apart
    def close(self) -> None:
        """What was found and has no line is done once more; failing that it is said without one."""
        self.tell_trend()
        self._tell_runaway()
        self._replay()
        located = self.suspects.give_up()
        if located is not None and all(event.code in CONSEQUENCES for event in self._run.log):
            self._record_located(located)
        self.worker_births.close()
        self.watch.stop()  # what was found at the end may have asked for a watch that no step will follow

    def _name_amplifier(self, norm: float, place: Amplifier, is_forward: bool) -> None:
        """Say what made a clipped gradient large. It is the first cause of a run in which clipping kept everything finite."""
        if place.site is None:
            return
        what = f"what is large behind it, {place.size:.4g}, was" if is_forward else f"it grew most, {place.size:.4g} times, by what is"
        run = self._run
        message = f"after a gradient norm of {norm:.4g}: {what} made here by {place.op}"
        led = "; ".join(text for text in (run.ranges.latest_trend(place.op), self._too_large_a_step(norm)) if text) or None
        message = message if led is None else f"{message}; {led}"
        event = run.event("NS507", "observed", place.op, message, place.site, facts=run.facts_of(place.value), trend=led)
        self._amplifier = self._amplifier or run.log.record(event)
        self._amplified_at = run.site()

    def _too_large_a_step(self, norm: float) -> str | None:
        """What the learning rate makes of a gradient of this norm, where the step is as long as that and leads past the parameters altogether."""
        records = self._run.history.leading_here()
        rate = records[-1].learning_rate if records else None
        along = [o for o in self._run.optimizers if isinstance(o, torch.optim.SGD)]
        if rate is None or len(along) != 1:
            return None
        with torch.no_grad(), without_function_modes():
            size = global_norm([p for group in along[0].param_groups for p in group["params"] if is_plain(p)])
        step = rate * norm
        if not size < step < math.inf:
            return None
        return f"unclipped, a step of the learning rate {rate:.3g} would have been {step:.3g} long, {step / size:.3g} times the parameters' own norm"

    def _tell_runaway(self) -> None:
        """Clipping kept everything finite, and the rate grew all the same: that is the cause of the gradients that were too large."""
        if self._first_cause is None and self._amplifier is not None:
            trend = trend_of(self._run.history.leading_here())
            if trend is not None and trend.is_runaway:
                message = "the gradients that this learning rate led to had to be clipped"
                self._first_cause = self._run.note("NS512", "warned", "step", message=message, site=self._amplified_at, trend=trend.text)

    @property
    def first_cause(self) -> Event | None:
        """The event that began it: where the first bad number was born, whether it spoiled a step or was mended before it could; else what made the
        first gradient that was too large. A learning rate that grew without bound comes before all of them. None where nothing happened."""
        named, events = self._first_cause, self._run.events
        if named is None:
            causes = (e for e in events if e.code not in CONSEQUENCES and e.action != "warned")
            return next(causes, None) or self._amplifier or next(iter(events), None)
        if named.code == "NS512":
            return named
        # An overflow that was bounded in an earlier step, or earlier in this one, is where it began without a guard.
        came_in = ("NS803", "NS804")  # mended there, and born elsewhere
        mended = (e for e in events if e.action in ("bounded", "repaired") and e.code not in (*CONSEQUENCES, *came_in) and not e.nan and not e.inf)
        first = min(mended, key=lambda e: e.step, default=named)
        return first if first.step < named.step else named


def _latest(said: Sequence[Said]) -> list[Said]:
    """The latest warning of numpy; of several in one function the first, which the others follow from."""
    found = list(said[-1:])
    for one in reversed(said[:-1]):
        if (one.site.file, one.site.function) != (found[0].site.file, found[0].site.function):
            break
        found = [one]
    return found


def _with_use(message: str, op: str, used_at: Site | None, made_at: Site | None) -> tuple[str, Site | None]:
    """What is said of bad data, and its line: that of the statement that made it bad, where it is known; then the message names the first use."""
    if made_at is None or used_at is None or (made_at.file, made_at.line) == (used_at.file, used_at.line):
        return message, made_at or used_at
    return f"{message}; {op} at {used_at} is the first to meet it", made_at


def _made_from(x: Tensor) -> list[Tensor]:
    """The parameters that a tensor was computed from, or itself if it is one."""
    if x.grad_fn is None:
        return [x] if x.requires_grad else []
    return feeding_parameters(x.grad_fn)
