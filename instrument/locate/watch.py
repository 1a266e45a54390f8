"""The watching mode: every operation of a few steps is looked at, forward and backward, to find where a bad number is born.

It is entered by itself when a step failed and no guard saw why, for at most `anomaly.watch_steps` steps a failure; the failing step was skipped,
so the parameters that made it are still there and the next one usually shows the fault again. It costs a few times a plain step while it is on,
nothing otherwise. It sees the thread that failed, and operations that are called from Python; calls inside C++ and compiled code it does not.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import threading
import weakref
from collections import ChainMap
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.data
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from instrument.armed_lines import time_of_forward
from instrument.callsite import module_path
from instrument.events import Site
from instrument.guards.base import is_compiling
from instrument.guards.dropped_gradient import is_dropped
from instrument.guards.step import _STEPPING
from instrument.interception import Replacement, replace_attribute, restore
from instrument.locate.came_in import still_graphed
from instrument.locate.graph import Place
from instrument.locate.open_mode import OpenMode
from instrument.locate.origin import kinds, spread
from instrument.locate.transforms import bare, is_transformed, nodes
from instrument.locate.trends import Growth, recurrence
from instrument.locate.unwritten import HANDS_OUT, Unwritten, is_written, what_is_read
from instrument.runtime import QUIET, is_plain, is_readable
from instrument.tensors import is_bad, tensors_in
from latent_drift.numerics.finite import largest_magnitude

if TYPE_CHECKING:
    from instrument.run import Run

_COPYING = (
    "detach",
    "clone",
    "__get__",
    "requires_grad_",
    "register_hook",
    "retain_grad",
    "backward",
    "numpy",
    "item",
    "tolist",
    "isfinite",
    "isnan",
    "isinf",
)


FAILURES_WATCHED = 20
"""Each failure that nothing explains is worth `watch_steps` steps anew, so many times in a run: a fault that comes once in hundreds of steps is
still found, and a run that fails for ever is not slow for ever."""


def _is_bookkeeping() -> bool:
    """Inside an optimizer's step: whether this call is the update's own arithmetic or the step guard's look at it, which the step guard judges by
    the outcome, and not a closure's forward and backward."""
    if QUIET and not torch.is_grad_enabled():
        return True
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "contextlib", "instrument"):
        if frame.f_globals["__name__"].startswith(("instrument.guards.step", "instrument.recovery")):
            return True
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).startswith("latent_drift.numerics")


_LOADERS = str(Path(torch.utils.data.__file__).parent)


def is_loading() -> bool:
    """Whether a DataLoader is fetching a batch: what happens in there is data, not an operation of the loop."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_LOADERS):
            return True
        frame = frame.f_back
    return False


_PASSED_THROUGH = (__name__, "torch.utils._contextlib", "torch._ops", "torch.overrides", "contextlib")


def _moves_shards() -> bool:
    """Whether torch's sharding makes this call, gathering or giving back the parts of a parameter: views of memory that nothing was written to yet,
    and parameters only once they are whole."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _PASSED_THROUGH:
        frame = frame.f_back
    name = str(frame.f_globals.get("__name__", ""))
    return name.startswith("torch.distributed.") and not name.startswith("torch.distributed.tensor")


_is_packing = torch._C._autograd._top_saved_tensors_default_hooks  # None where what autograd saves lies there as it is


class Watching(TorchFunctionMode):
    """Looks at the result of every torch call, and hangs a check on the backward of each."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run: weakref.ref[Run] = weakref.ref(run)
        self._met: dict[int, Tensor] = {}  # bad tensors of this step whose origin is known; kept alive so that ids stay theirs
        self._hooked: set[Any] = set()
        self._from_before: set[int] = set()  # ids of those that were made before this mode was on: what becomes of them is no birth
        self.places: dict[Any, Place] = {}
        """Where the graph's nodes of this step were made."""
        self.earlier_places: dict[Any, Place] = {}
        """The same of the step before: where several optimizers take turns, what one's loss is made of was computed before the other's step."""
        self.entered: dict[int, tuple[Tensor, Place]] = {}
        """Tensors of this step that were computed from data with a hole, and the line at which that data entered; kept alive so that ids stay."""
        self.sizes: dict[tuple[str, int], dict[str, list[float]]] = {}
        """The largest magnitude of each finite result of this step, in order of the calls, by line and operation."""
        self.since: int = torch._C._autograd._get_sequence_nr()
        """The number of the first of autograd's nodes that this mode sees made."""
        self._unwritten = Unwritten()
        self.done = False
        self.mending = False
        self.mending_since = 0
        self._comes_again = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call itself, then the look. Code under compilation is traced as it is without the mode: what it gives is looked at when it is used."""
        if is_compiling():
            return function(*args, **(kwargs or {}))
        return self.watched(function, getattr(function, "__name__", str(function)), args, kwargs or {})

    def watched(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call, and look at what went in and what came out."""
        run = self._run()
        if self.done or run is None or name in _COPYING or (_STEPPING and _is_bookkeeping()) or _moves_shards():
            return function(*args, **kwargs)
        if name in HANDS_OUT:
            result = function(*args, **kwargs)
            self._unwritten.hand_out(result, run.site())
            return result
        if self.mending:
            return self._mended(run, function, name, function(*args, **kwargs), args, kwargs)
        before = [x for x in map(bare, tensors_in(what_is_read(name, args, kwargs))) if is_bad(x)]
        nan_before = any(bool(torch.isnan(x.detach()).any()) for x in before)
        result = function(*args, **kwargs)
        if self._unwritten.is_view(name, result, args, kwargs):
            return result
        self._follow_data(run, before, args, kwargs, result)
        loading = bool(before) and is_loading()
        for given in tensors_in(result):
            out = bare(given)
            if is_bad(out) and not loading:
                # Only what passes something bad on counts: selecting the good rows of a table with a hole is fine.
                for x in before:
                    if id(x) not in self._met:
                        self._came_in(run, name, x)
                self._met[id(out)] = out
                if any(id(x) in self._from_before for x in before):
                    self._from_before.add(id(out))
                elif not before or (not nan_before and bool(torch.isnan(out.detach()).any())):
                    self._born(run, function, name, out, args, kwargs)
            if is_readable(out):
                made_by = nodes(given)
                for node in made_by:
                    self._check_backward(run, name, node)
                if made_by and out.numel():
                    self._measure(name, out, self.places.get(made_by[0]))
        return result

    def _follow_data(self, run: Run, before: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Remember the line at which bad data entered, for everything computed from it outside of the graph: a batch is an index into a table."""
        place: Place | None = None
        for x in tensors_in((args, kwargs)):
            known = self.entered.get(id(x))
            place = place or (None if known is None else known[1])
        if place is None and before and not is_loading():
            site = run.site()
            place = None if site is None else (site, module_path())
        if place is not None:
            for out in tensors_in(result):
                if out.grad_fn is None and not isinstance(out, nn.Parameter):
                    self.entered[id(out)] = (out, place)

    def _mended(self, run: Run, function: Any, name: str, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """At the lines that spoiled a step, a non-finite result is bounded at a share of the dtype's range (`ArmedLines.share`; NaN at 0), without
        gradient there, and the gradient that leaves an operation is kept finite. Everywhere else nothing is touched."""
        if not isinstance(result, Tensor):
            return result
        if is_transformed(result):
            return self._mended_inside(run, name, result)
        if not is_readable(result) or next(tensors_in((args, kwargs)), None) is None:
            return result  # what is made of no tensor (torch.full of NaN) is meant so
        bad = is_bad(result)
        if not bad and result.grad_fn is None:
            return result
        site = run.site()
        if site is None or not run.armed.holds(site) or not self._mends_now():
            return result
        if bad and self._unwritten.is_view(name, result, args, kwargs):
            return result
        if bad:
            result = self._without_bad_columns(run, function, name, site, result, args, kwargs)
        elif not result.is_complex() and largest_magnitude(result).item() > run.armed.limit(result.dtype):
            result = self._held(run, name, site, result, args, kwargs)
        if is_bad(result):
            came_in = any(is_bad(x) for x in tensors_in((args, kwargs)))
            code, why = ("NS803", "what went in is not finite") if came_in else ("NS805", f"the result of {name} is not finite")
            run.note(code, "bounded", name, site=site, x=result, message=f"{why}; the result was bounded, without gradient there", fired=True)
            in_place = is_written(name, result, args, kwargs)
            if result.is_complex():  # an infinite complex number has no direction to keep
                finite, nothing = torch.isfinite(result), torch.zeros((), dtype=result.dtype)
                result = result.copy_(torch.where(finite, result, nothing)) if in_place else torch.where(finite, result, nothing)
            else:
                ceiling = run.armed.ceiling(result.dtype)
                mend = result.nan_to_num_ if in_place else result.nan_to_num
                result = mend(nan=0.0, posinf=ceiling, neginf=-ceiling)
        if result.grad_fn is not None:
            for node in (result.grad_fn, *(n for n, _ in result.grad_fn.next_functions if n is not None)):
                if node not in self._hooked and "AccumulateGrad" not in node.name():
                    self._hooked.add(node)
                    node.register_hook(self._keep_finite(name, site))
        return result

    def _mends_now(self) -> bool:
        """Whether what runs is mended: what a checkpoint does again inside backward, only where it was mended the first time."""
        forward = time_of_forward()
        if forward is not None:
            return self.mending_since <= forward
        self._comes_again = self._comes_again or not torch.is_grad_enabled() or _is_packing(True) is not None
        return True

    def in_engine(self) -> AbstractContextManager[object]:
        """Around the engine's run: a call of `backward` is handled with the mode off, and what a checkpoint does again in it is to be mended too."""
        return self if self.mending and self._comes_again and not self.done else contextlib.nullcontext()

    def _mended_inside(self, run: Run, name: str, result: Tensor) -> Tensor:
        """The same inside a transform, where only what is done to all elements alike is allowed."""
        found = bare(result)
        if not is_plain(found) or not found.numel():
            return result
        site = run.site()
        if site is None or not run.armed.holds(site) or not self._mends_now():
            return result
        for node in nodes(result):
            if node not in self._hooked:
                self._hooked.add(node)
                node.register_hook(self._keep_finite(name, site))
        if not is_bad(found) and largest_magnitude(found).item() <= run.armed.limit(found.dtype):
            return result
        message = f"the result of {name} is not finite, inside a transform; it was bounded, without gradient there"
        run.note("NS805", "bounded", name, site=site, x=found, message=message, fired=True)
        ceiling = run.armed.ceiling(found.dtype)
        return result.nan_to_num(nan=0.0, posinf=ceiling, neginf=-ceiling).clamp(-ceiling, ceiling)

    def _held(self, run: Run, name: str, site: Any, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A result that is finite but beyond what is left alone at such a line: what follows it would overflow."""
        ceiling = run.armed.limit(result.dtype)
        message = f"the result of {name} is beyond {ceiling:.3g}, and this line overflowed before; it was bounded, without gradient there"
        run.note("NS805", "bounded", name, site=site, x=result, message=message, fired=True)
        return result.clamp_(-ceiling, ceiling) if is_written(name, result, args, kwargs) else result.clamp(-ceiling, ceiling)

    def _without_bad_columns(
        self, run: Run, function: Any, name: str, site: Any, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """The operation without the features of its data that are NaN or infinite in every row, a constant column that was divided by its own
        spread: such a column says nothing, and leaving out the rows would leave out all of them. They count as 0."""
        if any(result is x for x in args):
            return result
        dropped: dict[int, Tensor] = {}
        for x in tensors_in((args, kwargs)):
            if is_plain(x) and not x.requires_grad and x.dim() >= 2 and len(x) > 1:
                columns = ~torch.isfinite(x).any(0)
                if bool(columns.any()) and not bool(columns.all()):
                    dropped[id(x)] = x.masked_fill(columns, 0.0)
        if not dropped:
            return result
        message = "features of the data that are NaN or infinite in every row count as 0"
        run.note("NS803", "bounded", name, site=site, x=result, message=message, fired=True)
        again: Tensor = function(*(dropped.get(id(a), a) for a in args), **{k: dropped.get(id(v), v) for k, v in kwargs.items()})
        return again

    def _keep_finite(self, name: str, site: Any) -> Any:
        reference = self._run

        def keep(grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            run = reference()
            bad = [below for g in grad_inputs if g is not None and is_bad(below := bare(g))]
            if run is None or not bad or self.done:
                return None
            run.note(
                "NS805", "neutralised", f"{name} backward", site=site, x=bad[0], message=f"non-finite gradient of {name} was set to 0", fired=True
            )
            return tuple(g if g is None or not is_readable(bare(g)) else g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for g in grad_inputs)

        return keep

    def _born(self, run: Run, function: Any, name: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [x for x in map(bare, tensors_in((args, kwargs))) if is_readable(x) and x.numel()]
        if not inputs:
            self._came_in(run, name, out)
            return
        widest = max(inputs, key=lambda x: largest_magnitude(x).nan_to_num().item())
        what = kinds(out)
        made_of = "inputs that hold Inf" if any(is_bad(x) for x in inputs) else "finite inputs"
        # masked_fill(mask, -inf): an infinity that the script wrote down is meant, and what cannot stand it comes later.
        meant = what == "Inf" and _names_infinity((args, kwargs))
        run.search.born("NS805", name, message=f"{_qualified(function)} of {made_of} gave {what} {spread(out)}", x=widest, weak=meant)

    def _came_in(self, run: Run, name: str, x: Tensor) -> None:
        """A bad tensor that no operation seen so far made of others: data, or a parameter."""
        self._met[id(x)] = x
        source = still_graphed(run, x)
        handed_out = self._unwritten.site_of(x)
        if handed_out is not None:
            message = f"{name} reads memory of shape {tuple(x.shape)} that this line asked for and nothing was written to: it holds {kinds(x)}"
            run.search.born("NS803", "empty", message=message, x=x, site=handed_out)
        elif source is not None:
            self._from_before.add(id(x))
            run.search.look_behind(source)  # made before this mode was on: its graph knows more than that it came in
        else:
            run.search.came_in(name, x)

    def _check_backward(self, run: Run, name: str, node: Any) -> None:
        """Look at what this node's backward makes of the gradient, and the nodes before it that no call was seen for (an autograd.Function whose
        `apply` was bound to another name)."""
        site = run.site()
        if site is not None and node not in self.places:
            self.places[node] = (site, module_path())
        for candidate, called in ((node, name), *((n, n.name()) for n, _ in node.next_functions if n is not None)):
            if candidate not in self._hooked and "AccumulateGrad" not in candidate.name():
                self._hooked.add(candidate)
                candidate.register_hook(self._backward_check(called, site, candidate.next_functions))

    def _measure(self, name: str, out: Tensor, place: Place | None) -> None:
        """Note how large a result is: at the line of a recurrence it grows from call to call."""
        if place is not None and math.isfinite(size := largest_magnitude(out).item()):
            self.sizes.setdefault((place[0].file, place[0].line), {}).setdefault(name, []).append(size)

    def _backward_check(self, name: str, site: Any, edges: tuple[Any, ...]) -> Any:
        reference = self._run

        def check(grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]) -> None:
            run = reference()
            if run is None or self.done or any(g is not None and is_bad(bare(g)) for g in grad_outputs):
                return
            sent = ((edge, below) for edge, g in zip(edges, grad_inputs, strict=False) if g is not None and is_bad(below := bare(g)))
            bad = next((below for edge, below in sent if not is_dropped(edge, below)), None)
            if bad is not None:
                run.search.born(
                    "NS805", f"{name} backward", message=f"the gradient of {name} is not finite although what arrived there was", x=bad, site=site
                )

        return check

    def forget_step(self) -> None:
        """A new step begins."""
        self._met.clear()
        self._from_before.clear()
        self._hooked.clear()
        self.earlier_places, self.places = self.places, {}
        self.entered.clear()
        self.sizes.clear()
        self._unwritten.forget()


def _names_infinity(given: Any) -> bool:
    """Whether an infinite Python number is among the arguments of a call."""
    if isinstance(given, float):
        return math.isinf(given)
    if isinstance(given, dict):
        given = given.values()
    elif not isinstance(given, list | tuple):
        return False
    return any(map(_names_infinity, given))


def _qualified(function: Any) -> str:
    name = resolve_name(function)
    return name if name is not None else str(getattr(function, "__name__", function))


def _tapped(mode: Watching) -> list[Replacement]:
    original = torch.autograd.Function.__dict__["apply"].__func__

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return mode.watched(functools.partial(original, cls), cls.__name__, args, kwargs)

    taps = [replace_attribute(torch.autograd.Function, "apply", classmethod(apply))]
    for scripted in (torch.ScriptFunction, torch.ScriptMethod):
        call = scripted.__call__

        def called(program: Any, *args: Any, _call: Any = call, **kwargs: Any) -> Any:
            return mode.watched(functools.partial(_call, program), program.name, args, kwargs)

        taps.append(replace_attribute(scripted, "__call__", called))

    run_engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    @functools.wraps(run_engine)
    def run_engine_with_mode(*args: Any, **kwargs: Any) -> Any:
        with mode.in_engine():
            return run_engine(*args, **kwargs)

    return [*taps, replace_attribute(torch.autograd, "_engine_run_backward", run_engine_with_mode)]


class Watch:
    """Turns the watching mode on and off for a run, within its budget of steps."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._left = 0
        self.opened: OpenMode[Watching] | None = None
        self._opening = threading.RLock()
        self._taps: list[Replacement] = []
        self._step_began = False
        self.steps = 0

    @property
    def _mode(self) -> Watching | None:
        """To be read once in each of the following: another thread may take it off meanwhile."""
        opened = self.opened
        return None if opened is None else opened.mode

    @property
    def places(self) -> Mapping[Any, Place]:
        """Where the nodes of the step under way, and of the one before it, were made, while operations are being watched."""
        mode = self._mode
        if mode is None or not self._step_began or mode.done:
            return {}
        return ChainMap(mode.places, mode.earlier_places)

    @property
    def since(self) -> int:
        """The number of the first of autograd's nodes whose place is known."""
        mode = self._mode
        return 0 if mode is None else mode.since

    def entered_at(self, x: Tensor) -> Place | None:
        """The line at which the bad data that this tensor was computed from entered the step that is being watched."""
        mode = self._mode
        known = None if mode is None else mode.entered.get(id(x))
        return None if known is None else known[1]

    def recurrence_at(self, site: Site) -> Growth | None:
        """How the results of this line grew from call to call in the step that is being watched, if they did so without bound."""
        mode = self._mode
        series = {} if mode is None else mode.sizes.get((site.file, site.line), {})
        found = [grown for sizes in list(series.values()) if (grown := recurrence(sizes)) is not None]
        return max(found, key=lambda grown: grown.steps, default=None)

    @property
    def is_on(self) -> bool:
        """Whether operations are being watched."""
        mode = self._mode
        return mode is not None and not mode.done and not mode.mending

    @property
    def mends(self) -> bool:
        """Whether the lines that spoiled a step are being mended."""
        mode = self._mode
        return mode is not None and mode.mending

    def start(self, run: Run) -> bool:
        """Begin watching if there is budget left and no other mode is in the way. A call of `apply` on an autograd.Function passes no mode, and a
        call of a TorchScript program neither, so they are replaced for the time."""
        if self.steps >= self._budget * FAILURES_WATCHED or not OpenMode.may_open():
            return False
        with self._opening:  # of several threads that fail at once, one watches
            if self.opened is not None:
                return False
            mode = Watching(run)
            self._taps = _tapped(mode)
            self.opened = OpenMode(mode)
        self._left = min(self._budget, self._budget * FAILURES_WATCHED - self.steps)
        self._step_began = False
        return True

    def finish(self, *, mend: bool) -> None:
        """The origin is known: look no further. The mode itself is taken off where that can be done, or stays to `mend` what is born there: an
        operation that no guard covers can only be bounded from here."""
        mode = self._mode
        if mode is not None and not mode.mending:
            self.steps += self._step_began
            mode.forget_step()
            mode.mending = mend
            mode.mending_since = torch._C._autograd._get_sequence_nr()
            mode.done = not mend
            self.settle()

    def step_finished(self) -> None:
        """Count a watched step; stop when the budget is spent."""
        opened = self.opened
        if opened is None:
            return
        mode = opened.mode
        if mode.mending:
            mode.forget_step()
        elif not mode.done:
            self.steps += self._step_began
            self._left -= self._step_began
            self._step_began = True
            mode.forget_step()
            mode.done = self._left <= 0
        self.settle()

    def settle(self) -> None:
        """Take a finished mode off, if it is the one on top: inside a call that it is handling it is not, and the next occasion does it."""
        with self._opening:
            if self.opened is not None and self.opened.mode.done and self.opened.leave():
                restore(self._taps)
                self.opened = None

    def stop(self) -> None:
        """The block closes. A mode that another thread has on does nothing any more, and nothing that was replaced outlives the block."""
        mode = self._mode
        if mode is not None:
            mode.done = True
            self.settle()
            restore(self._taps)
