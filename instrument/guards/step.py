"""Every optimizer's step (NS506, NS507, NS508, NS512): non-finite gradients are kept out, large ones clipped, a spoilt update taken back.

The gradients are judged once, by one norm: it is finite if and only if every gradient is. A step that is skipped is not called at all, so
neither parameters nor optimizer state nor counters inside it move. With a closure the gradients exist only inside the step: there the
step runs on a copy that is put back if it ends non-finite.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from instrument.callsite import is_users
from instrument.distributed.agreement import AGREEMENT, Verdict
from instrument.distributed.shards import local_part
from instrument.guards.base import Function, Spelling, is_compiling, mimic
from instrument.guards.hand_over import is_foreign
from instrument.guards.parameter_names import parameter_names
from instrument.guards.step_snapshot import StepSnapshot
from instrument.guards.update_risk import HUGE_UPDATE, is_risky, largest_rate
from instrument.recovery.rates import Lent
from instrument.runtime import QUIET, RUNTIME, StopReplay, function_modes, without_function_modes
from latent_drift.errors import GiveUpError, NumericalError
from latent_drift.numerics.finite import dense_values, nonfinite_positions
from latent_drift.numerics.gradients import (
    GradientHistory,
    clip_adaptively_,
    clip_by_global_norm_,
    clip_by_value_,
    global_norm,
    zero_nonfinite_,
)

# Optimizers that are stepping now, by id: one that calls super().step() is judged once.
_STEPPING: set[int] = set()

_ONLY_TENSORS = {Tensor}


def stand_in(raw_step: Function, owner: type) -> Function:
    """A class's `step` with the judgement around it.

    torch wraps `step` itself when the first instance of a class is built (that is what calls the step hooks); a class that it has not met
    yet gets that wrapping here, so that hooks work inside the block as they do outside.
    """
    hooked_step = raw_step if getattr(raw_step, "hooked", False) else Optimizer.profile_hook_step(raw_step)

    code = getattr(inspect.unwrap(raw_step), "__code__", None)
    by_user = code is not None and is_users(code.co_filename)

    @mimic(raw_step, Spelling(owner, "step", "step"))
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        # A wrapper such as Lookahead that never calls Optimizer.__init__ has no hooks, and torch would not look for any.
        hooked = hasattr(self, "_optimizer_step_pre_hooks")
        run_step = hooked_step if hooked else raw_step
        if not RUNTIME.active or is_compiling():
            return run_step(self, *args, **kwargs)
        key = id(self)
        if key in _STEPPING or (not hooked and _passes_on(self)) or (_has_cuda() and _is_captured()):
            return run_step(self, *args, **kwargs)
        if RUNTIME.replaying == get_ident():
            raise StopReplay
        _STEPPING.add(key)
        if not by_user:
            QUIET.add(key)
        try:
            if function_modes() and is_foreign((), {}):
                with without_function_modes():  # a mode of the script's own hears of the step, not of what is read to judge it
                    return _judged_step(self, _heard(run_step), args, kwargs)
            return _judged_step(self, run_step, args, kwargs)
        finally:
            _STEPPING.discard(key)
            QUIET.discard(key)

    step.hooked = True  # type: ignore[attr-defined]
    return step


def _heard(run_step: Function) -> Function:
    """The step with the modes on that are off around it."""

    def heard(*args: Any, **kwargs: Any) -> Any:
        with torch._C._EnableTorchFunction():
            return run_step(*args, **kwargs)

    return heard


def _passes_on(optimizer: Optimizer) -> bool:
    """Whether an optimizer without hooks is a shell around another one, and decides when that steps (accelerate's does not while gradients
    accumulate): the one inside is judged, when it steps. A shell never calls `Optimizer.__init__`."""
    return any(isinstance(value, Optimizer) for value in vars(optimizer).values())


_has_cuda = functools.cache(torch.cuda.is_available)


_is_captured = torch.cuda.is_current_stream_capturing
"""Whether a CUDA graph is recording this step: nothing of it may be read then."""


def _judged_step(optimizer: Optimizer, run_step: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    run = RUNTIME.run
    run.threads.add(get_ident())
    if run.deferred.pending:
        run.read_deferred()
    closure = _closure_of(args, kwargs) if args or kwargs else None
    lent, skip = run.recovery.before_step(run, optimizer)
    try:
        if skip:
            result, skipped = _loss_alone(closure), True
        elif closure is not None:
            result, skipped = _with_closure(optimizer, run_step, closure, args, kwargs)
        else:
            result, skipped = _without_closure(optimizer, run_step, args, kwargs)
    finally:
        if lent:
            run.recovery.rates.take_back(lent)
    _finish(optimizer, skipped)
    return result


def _loss_alone(closure: Callable[[], Any] | None) -> Any:
    """What a step with a closure gives back, for one that is left out: scripts read the loss of it."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    closure = args[0] if args else kwargs.get("closure")
    return closure if callable(closure) else None


def _finish(optimizer: Optimizer, skipped: bool) -> None:
    run = RUNTIME.run
    failed = AGREEMENT.step_finished(optimizer, failed=skipped or run.search.blamed)
    give_up = run.recovery.after_step(run, optimizer, skipped=skipped, failed=failed)
    run.step_finished(optimizer, skipped=skipped)
    if give_up is not None:
        raise give_up
    if skipped and run.tally.skipped_in_a_row >= run.config.gradient.max_consecutive_skips:
        raise GiveUpError(
            f"{run.tally.skipped_in_a_row} optimizer steps in a row had to be skipped, their gradients were not finite: going on would only spin. "
            "The events say where the first bad number came from; mend that line, lower the learning rate, or raise gradient.max_consecutive_skips."
        )


# Steps that reach an optimizer past its class: a learning rate scheduler built before the block keeps the class's old step in a closure. torch
# calls its global hooks there all the same; the step cannot be left out, so it runs and is put back.

_PENDING: dict[int, tuple[StepSnapshot | None, bool, Lent]] = {}


def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Global pre-hook: judges the steps that did not come through a stand-in."""
    if not RUNTIME.active or id(optimizer) in _STEPPING or not RUNTIME.run.policy.act or is_compiling():
        return
    run = RUNTIME.run
    lent, skip = run.recovery.before_step(run, optimizer)
    if skip or _closure_of(args[1:], kwargs) is not None:
        _PENDING[id(optimizer)] = (StepSnapshot(optimizer), skip, lent)
        return
    skip, check = _judge(optimizer)
    if skip or check or lent:
        _PENDING[id(optimizer)] = (StepSnapshot(optimizer) if skip or check else None, skip, lent)


def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Global post-hook: puts a step back that should not have been, or that spoilt a parameter."""
    if not RUNTIME.active or id(optimizer) in _STEPPING or not RUNTIME.run.policy.act or is_compiling():
        return
    snapshot, skip, lent = _PENDING.pop(id(optimizer), (None, False, []))
    RUNTIME.run.recovery.rates.take_back(lent)
    if snapshot is not None:
        if skip:
            snapshot.restore()
        else:
            skip = _put_back_if_spoilt(optimizer, snapshot)
    _finish(optimizer, skip)


# Without a closure: the gradients are there ---------------------------------------------------------------------------


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _without_closure(optimizer: Optimizer, run_step: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
    skip, check = _judge(optimizer)
    if skip:
        return None, True
    return _checked_update(optimizer, run_step, args, kwargs) if check else (run_step(optimizer, *args, **kwargs), False)


def _judge(optimizer: Optimizer) -> tuple[bool, bool]:
    """Look at the gradients and do to them what the config says; returns whether to skip the step, else whether to check its update."""
    run = RUNTIME.run
    gradients, held = _gradients(optimizer)
    scale = _grad_scale(optimizer)
    norm = _true_norm(optimizer, gradients, held, scale)
    verdict = _agreed(optimizer, gradients, norm) if AGREEMENT.concerns(optimizer) else None
    norm = run.history.norm = norm if verdict is None else verdict.norm
    bad = not math.isfinite(norm) and not _scaler_decides(optimizer)
    run.layers.see(optimizer, bad, scale)
    if bad:
        if verdict is None or _is_to_blame(verdict, held):
            run.search.blame()
        policy = run.config.gradient.nonfinite if run.policy.act else "record"
        if policy == "zero" and verdict is not None and verdict.uneven:
            policy = "skip"  # zeros in one copy of the gradient only would make the copies of the parameters differ
        if policy == "skip" and verdict is None and _is_worth_zeroing(optimizer, held):
            policy = "zero"
        _note_nonfinite(optimizer, policy, verdict)
        if policy == "raise":
            run.recovery.before_raise(run)
            raise NumericalError(
                "a gradient is not finite when the optimizer is about to step, and gradient.nonfinite is 'raise'; the event log names it"
            )
        if policy == "skip":
            return True, False
        if policy == "record":
            return False, False
        zero_nonfinite_(held)
        run.history.outcome = "zeroed"
        norm = _true_norm(optimizer, gradients, held, scale)
        verdict = _agreed(optimizer, gradients, norm) if AGREEMENT.concerns(optimizer) else None
        norm = norm if verdict is None else verdict.norm
    if not run.policy.act:
        return False, False
    if run.policy.unclipped < norm < math.inf:
        _clip(optimizer, gradients, held, norm)
    return False, _risky(optimizer, norm) if verdict is None else verdict.risky


def _gradients(optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients, and the numbers of them that this process holds: the same tensors unless they are sharded."""
    gradients = [gradient for group in optimizer.param_groups for p in group["params"] if (gradient := p.grad) is not None]
    if set(map(type, gradients)) <= _ONLY_TENSORS:
        return gradients, gradients
    return gradients, [local_part(gradient) for gradient in gradients]


def _agreed(optimizer: Optimizer, gradients: Sequence[Tensor], norm: float, *, closure: bool = False) -> Verdict | None:
    """What all processes that train this model make of the gradients, where `AGREEMENT.concerns` the optimizer. Inside a closure the update is always
    looked at."""
    run = RUNTIME.run
    if not run.policy.act:
        return None
    risky = closure or _risky(optimizer, norm)
    return AGREEMENT.judge(optimizer, gradients, _grad_scale(optimizer), norm, suspect=run.search.blamed, risky=risky)


def _is_worth_zeroing(optimizer: Optimizer, gradients: Sequence[Tensor]) -> bool:
    """Whether so many steps in a row failed already that the good elements, if they are the greater part, had better be used."""
    run = RUNTIME.run
    wait = run.config.gradient.zero_after_skips
    if wait == 0 or run.recovery.failures_in_a_row(optimizer) < wait:
        return False
    with without_function_modes():
        values = [dense_values(gradient) for gradient in gradients]
        good = sum(int(torch.isfinite(v).sum()) for v in values)
    return 2 * good >= sum(v.numel() for v in values)


def _risky(optimizer: Optimizer, norm: float) -> bool:
    run = RUNTIME.run
    return is_risky(optimizer, norm, bounded=run.policy.bounds_updates, first=run.is_first_step(optimizer))


def _is_to_blame(verdict: Verdict, held: Sequence[Tensor]) -> bool:
    """Whether to look for the cause in this process: not if another one knows that it began there."""
    if verdict.suspects:
        return RUNTIME.run.search.blamed
    with without_function_modes():
        return not math.isfinite(global_norm(held))


def _grad_scale(optimizer: Optimizer) -> float:
    """The factor that the gradients still carry: a GradScaler hands it to fused optimizers, which unscale inside their step."""
    scale = getattr(optimizer, "grad_scale", None)
    return float(scale) if isinstance(scale, Tensor) and scale.numel() == 1 else 1.0


def _scaler_decides(optimizer: Optimizer) -> bool:
    """A GradScaler that hands `found_inf` to the step makes it skip by itself: its search for a scale is no anomaly."""
    return isinstance(getattr(optimizer, "found_inf", None), Tensor)


def _true_norm(optimizer: Optimizer, gradients: list[Tensor], held: list[Tensor], scale: float) -> float:
    """The norm of gradients that carry the factor `scale`, as far as this process holds them."""
    if held is gradients and not function_modes():
        return RUNTIME.run.gradient_norm(optimizer, held) / scale
    with without_function_modes():  # gradients that are judged here are no data to the watching mode
        return RUNTIME.run.gradient_norm(optimizer, held) / scale


def _clip(optimizer: Optimizer, all_gradients: Sequence[Tensor], gradients: list[Tensor], norm: float) -> None:
    """Clip `gradients`, which this process holds, by the norm of all."""
    run = RUNTIME.run
    clip = run.config.gradient.clip
    if clip.kind == "none":
        return
    scale = _grad_scale(optimizer)
    threshold = ""
    if clip.kind == "norm":
        order = float(clip.norm_type)
        known = norm * scale if order == 2.0 else AGREEMENT.norm_of_order(optimizer, all_gradients, order)
        outcome = clip_by_global_norm_(gradients, clip.max_norm * scale, order, norm=known)
        threshold = f"{clip.max_norm:.6g}"
    elif clip.kind == "value":
        outcome = clip_by_value_(gradients, clip.max_value * scale, norm=norm * scale)
        threshold = f"{clip.max_value:.6g} an element"
    elif clip.kind == "agc":
        if scale != 1.0:
            return  # the ratio to the weights is only known once the gradients are unscaled, inside a fused step
        outcome = clip_adaptively_([_held_with_gradient(p) for p in _parameters(optimizer)], clip.clipping, clip.eps)
        threshold = f"{clip.clipping:.6g} of each unit's weight norm"
    else:
        history = run.gradient_history(optimizer, clip.history)
        limit = _history_limit(clip, history)
        history.record(norm)
        if norm <= limit:
            return
        outcome = clip_by_global_norm_(gradients, limit * scale, norm=norm * scale)
        threshold = f"{limit:.6g} ({clip.kind} of the last {len(history)} steps)"
    if outcome.clipped:
        run.tally.clipped += 1
        run.history.outcome = "clipped"
        run.note("NS507", "clipped", "step", message=f"gradient norm {norm:.4g} clipped to {threshold}")
        if run.scaled_loss is None:
            run.search.amplification.begin(optimizer, norm, run.config.gradient.warn_norm)


def _held_with_gradient(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds, with that part of its gradient."""
    held = local_part(parameter)
    if held is not parameter:
        held = held.detach()
        held.grad = None if parameter.grad is None else local_part(parameter.grad)
    return held


def _history_limit(clip: Any, history: GradientHistory) -> float:
    ceiling = math.inf if clip.max_norm is None else float(clip.max_norm)
    if len(history) < clip.warmup:
        return ceiling
    found = history.percentile(clip.percentile) if clip.kind == "adaptive_percentile" else history.zscore_threshold(clip.threshold)
    return min(ceiling, found) if found > 0.0 else ceiling


_DONE = {
    "skip": ("skipped", "the step was skipped"),
    "zero": ("zeroed", "those elements were set to 0"),
    "record": ("observed", "nothing was altered"),
}


def _note_nonfinite(optimizer: Optimizer, policy: str, verdict: Verdict | None = None) -> None:
    with_gradient = [p for p in _parameters(optimizer) if p.grad is not None]
    gradients = [p.grad for p in with_gradient if p.grad is not None]
    bad = nonfinite_positions(gradients)
    action, said = _DONE.get(policy, ("observed", "an exception is raised"))
    names = parameter_names([with_gradient[i] for i in bad[:3]])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    found = f"the gradient of {len(bad)} of {len(gradients)} parameters is not finite ({', '.join(names)}{more})"
    if verdict is not None:
        began = verdict.suspects or (verdict.bad if verdict.uneven or not bad else ())
        if not bad:
            found = f"the gradient on rank {', '.join(map(str, verdict.bad))} is not finite"
        elif began:
            found += f"; it began on rank {', '.join(map(str, began))}"
    RUNTIME.run.note(
        "NS506",
        action,  # type: ignore[arg-type]
        "step",
        x=gradients[bad[0]] if bad else None,
        message=f"{found}; {said}",
    )


# The update itself ----------------------------------------------------------------------------------------------------


def _checked_update(optimizer: Optimizer, run_step: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """Step on a copy of parameters and state that is put back if a number in them that was finite no longer is."""
    snapshot = StepSnapshot(optimizer)
    config = RUNTIME.run.config
    raised = RUNTIME.run.recovery.raised_eps
    lent = raised.lend(optimizer, config) if raised.applies(optimizer) else []
    births = RUNTIME.run.search.births
    known = births.number
    try:
        result = run_step(optimizer, *args, **kwargs)
        # A closure would be called once more, and its draws with it: such a step is only put back.
        if not lent and config.recovery.repeat_with_eps and _closure_of(args, kwargs) is None and snapshot.spoilt():
            said = raised.raise_for(optimizer, config)
            if said:
                snapshot.restore()
                RUNTIME.run.search.name_first(births.since(known))  # the line in an optimizer that the script itself defines
                message = f"{type(optimizer).__name__} divided by 0: {said}, and the step was done again"
                RUNTIME.run.note("NS301", "repaired", "step", message=message)
                lent = raised.lend(optimizer, config)
                result = run_step(optimizer, *args, **kwargs)
    except RuntimeError as error:
        if not _is_about_the_rate(error):
            raise
        _put_back_raised(optimizer, snapshot, error)
        RUNTIME.run.recovery.rates.refuse(optimizer)
        return _loss_alone(_closure_of(args, kwargs)), True
    finally:
        raised.take_back(lent)
    _bound_update(optimizer, snapshot)
    return result, _put_back_if_spoilt(optimizer, snapshot)


def _is_about_the_rate(error: RuntimeError) -> bool:
    """A learning rate beyond the dtype's range is no number that a kernel takes."""
    return "without overflow" in str(error) and RUNTIME.run.config.repair_raising


def _put_back_raised(optimizer: Optimizer, snapshot: StepSnapshot, error: RuntimeError) -> None:
    snapshot.restore()
    message = f"{type(optimizer).__name__} (learning rate {_rates(optimizer)}) raised ({error}); parameters and optimizer state were put back"
    RUNTIME.run.search.blame()
    RUNTIME.run.note("NS508", "skipped", "step", message=message)


@torch.no_grad()
def _bound_update(optimizer: Optimizer, snapshot: StepSnapshot) -> None:
    """Scale back the updates that are larger than the config's share of their parameter: Adam's step does not depend on the gradient's scale, so
    clipping the gradient does not bound it."""
    bound = RUNTIME.run.config.gradient.update_bound
    if bound.kind == "none":
        return
    shortened = 0
    largest = 0.0
    for parameter, before in zip(_parameters(optimizer), snapshot.parameters, strict=True):
        update = parameter.detach() - before
        size = global_norm([local_part(update)])
        limit = bound.max_ratio * max(global_norm([local_part(before)]), bound.eps)
        if math.isfinite(size) and size > limit:
            parameter.detach().copy_(before + update * (limit / size))
            shortened += 1
            largest = max(largest, size / limit)
    if shortened:
        message = (
            f"the updates of {shortened} parameters were scaled back to {bound.max_ratio:g} of their norm; the largest was {largest:.3g} times that"
        )
        RUNTIME.run.note("NS512", "clipped", "step", message=message)


def _put_back_if_spoilt(optimizer: Optimizer, snapshot: StepSnapshot) -> bool:
    spoilt = snapshot.spoilt_parameters()
    state = [] if spoilt else snapshot.spoilt_state()
    growth = snapshot.growth() if not spoilt and not state else math.nan
    exploded = growth > HUGE_UPDATE
    bad = bool(spoilt or state or exploded)
    if not (AGREEMENT.spoilt_anywhere(optimizer, bad) if AGREEMENT.concerns(optimizer) else bad):
        return False
    if not bad:
        RUNTIME.run.note("NS508", "skipped", "step", message="this update made parameters of another process non-finite; it was taken back here too")
        snapshot.restore()
        return True
    if spoilt:
        done = f"made {len(spoilt)} parameters non-finite ({', '.join(parameter_names(spoilt[:3]))})"
    elif state:
        done = f"made {len(state)} tensors of its own state non-finite"
    else:
        done = f"made the parameters {growth:.3g} times as large"
    message = f"{type(optimizer).__name__} (learning rate {_rates(optimizer)}) {done}; parameters and optimizer state were put back"
    RUNTIME.run.note("NS508", "skipped", "step", x=(spoilt or state or _parameters(optimizer))[0], message=message)
    snapshot.restore()
    RUNTIME.run.search.blame()
    if largest_rate(optimizer) >= HUGE_UPDATE or exploded:
        RUNTIME.run.recovery.rates.refuse(optimizer, growth)
    return True


def _rates(optimizer: Optimizer) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted({float(group["lr"]) for group in optimizer.param_groups if "lr" in group})) or "unknown"


# With a closure: gradients exist only inside --------------------------------------------------------------------------


def _with_closure(
    optimizer: Optimizer, run_step: Function, closure: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, bool]:
    """Run the step; put everything back if it ended non-finite. A line search may visit bad points and return: only the end counts.

    torch's other optimizers call their closure once, before they touch anything: its gradients are judged there as they are without a closure.

    LBFGS builds its curvature from differences of gradients, so they are clipped only for optimizers that take one gradient at a time.
    """
    if not RUNTIME.run.policy.act:
        return run_step(optimizer, *args, **kwargs), False
    RUNTIME.run.recovery.buffers.begin()
    if isinstance(optimizer, torch.optim.LBFGS):
        return _checked_update(optimizer, run_step, args, kwargs)
    if type(optimizer).__module__.startswith("torch.optim."):
        return _judged_in_closure(optimizer, run_step, closure, args, kwargs)

    def clipped_closure() -> Any:
        loss = closure()
        gradients, held = _gradients(optimizer)
        norm = _true_norm(optimizer, gradients, held, _grad_scale(optimizer))
        verdict = _agreed(optimizer, gradients, norm, closure=True) if AGREEMENT.concerns(optimizer) else None
        norm = RUNTIME.run.history.norm = norm if verdict is None else verdict.norm
        if RUNTIME.run.policy.unclipped < norm < math.inf:
            _clip(optimizer, gradients, held, norm)
        return loss

    args, kwargs = ((clipped_closure, *args[1:]), kwargs) if args else (args, {**kwargs, "closure": clipped_closure})
    return _checked_update(optimizer, run_step, args, kwargs)


class _LeftOut(Exception):
    """Carries the loss out of a step that is not to be made."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss


def _judged_in_closure(
    optimizer: Optimizer, run_step: Function, closure: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, bool]:
    """A step whose closure is called once, before anything is touched. What is copied is copied then, and only if the update is to be looked at."""
    before: list[StepSnapshot] = []
    losses: list[Any] = []

    def judged_closure() -> Any:
        loss = closure()
        losses.append(loss)
        with torch.no_grad():
            skip, check = _judge(optimizer)
            if skip:
                raise _LeftOut(loss)
            if check:
                before.append(StepSnapshot(optimizer))
        return loss

    args, kwargs = ((judged_closure, *args[1:]), kwargs) if args else (args, {**kwargs, "closure": judged_closure})
    raised = RUNTIME.run.recovery.raised_eps
    lent = raised.lend(optimizer, RUNTIME.run.config) if raised.applies(optimizer) else []
    try:
        result = run_step(optimizer, *args, **kwargs)
    except _LeftOut as left_out:
        return left_out.loss, True
    except RuntimeError as error:
        if not before or not _is_about_the_rate(error):
            raise
        _put_back_raised(optimizer, before[0], error)
        return losses[-1], True
    finally:
        raised.take_back(lent)
    if not before:
        return result, False
    _bound_update(optimizer, before[0])
    return result, _put_back_if_spoilt(optimizer, before[0])
