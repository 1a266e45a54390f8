"""Persistent or transient? (NS809) The model's forward pass is done once more with the same inputs, state and draws, and compared bit for bit.

Equal bits: the fault lies in the numbers, and the same numbers will fail again. Other bits: the same computation gave two results, which points to
flaky hardware, a race, or an operation without a defined order. Where nothing can be compared, "unknown" is said and why.

What is replayed are the calls of the outermost modules of a step. They are kept only after a step has failed, for `WINDOW` steps: a run that is
healthy pays nothing, and a fault that never comes back cannot be replayed, which is said too. The replay leaves buffers, random streams, the modules'
plain attributes and the run's own log as they were; what a forward pass does outside of its modules (a counter in a global) it does once more.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from instrument.distributed.agreement import is_at_work
from instrument.runtime import without_function_modes
from instrument.tensors import tensors_in
from latent_drift.numerics.finite import is_finite
from latent_drift.numerics.snapshot import RandomSnapshot

if TYPE_CHECKING:
    from instrument.run import Run

_LOG = logging.getLogger(__name__)

WINDOW = 50
"""Steps after a failed one in which forward calls are kept for a replay."""

MOST_CALLS = 4
MOST_REPLAYS = 3

Kind = Literal["persistent", "transient", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a replay told: `step` counts as the events do."""

    kind: Kind
    reason: str
    step: int


@dataclass(slots=True)
class _Call:
    """One call of an outermost module: all that it takes to make it again."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: RandomSnapshot
    buffers: list[tuple[nn.Module, str, Tensor]]
    attributes: list[tuple[nn.Module, dict[str, Any]]]
    result: list[Tensor] | None = None


class Verdicts:
    """The verdicts of a run, and the calls of the step under way while they are kept."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self.recording: list[RemovableHandle] = []
        """The hooks that keep forward calls, while they are being kept."""
        self._calls: list[_Call] = []
        self._depth = 0
        self._left = 0
        self._thread = 0
        """The thread whose calls are kept: a step's forward and its update are one thread's, and others may train beside it."""
        self._judged = False
        self._replaying = False
        self._replays = 0
        self._came_back = False
        self.given: list[Verdict] = []

    def judge(self, run: Run) -> None:
        """The step under way has failed and nothing has reacted to it yet: replay its forward calls, if they were kept."""
        if not self._wanted or self._judged or self._replaying or self._replays >= MOST_REPLAYS:
            return
        if is_at_work():
            return  # a model's forward pass may wait for other processes, whose step has not failed
        self._judged = True
        if len(run.threads) > 1:
            return  # the random streams and hooks that a replay uses are those of the other threads too
        if "torch._dynamo" in sys.modules and torch._dynamo.utils.counters["frames"]:
            # A compiled module warns about hooks on modules, and would be compiled anew for them.
            self._wanted = False
            self._give(run, Verdict("unknown", "compiled code is not called once more", run.tally.steps))
            return
        if not self.recording:
            self._start()
            return
        if self._thread != get_ident():
            return
        self._came_back = True
        verdict = self._replay(run)
        if verdict is not None:
            self._replays += 1
            self._give(run, verdict)
            if verdict.kind != "unknown" or self._replays >= MOST_REPLAYS:
                self._wanted = False  # one answer a run: a fault that goes on would give the same one again
                self.stop()

    def step_finished(self) -> None:
        """The calls of this step are of no further use."""
        self._judged = False
        if self.recording and self._thread != get_ident():
            return
        self._calls.clear()
        if self.recording:
            self._left -= 1
            if self._left <= 0:
                self.stop()

    def close(self, run: Run) -> None:
        """The block closes: a fault that was never replayed has no verdict."""
        failed = bool(self.recording) or self._left < 0
        self._wanted = False
        self.stop()
        if failed and not self.given:
            reason = (
                "what failed did not fail again in the model's own calls" if self._came_back else "it did not come back, so it could not be replayed"
            )
            self.given.append(Verdict("unknown", reason, run.tally.steps))

    def stop(self) -> None:
        """Keep no more calls."""
        for handle in self.recording:
            handle.remove()
            module_hooks._global_forward_hooks_with_kwargs.pop(handle.id, None)  # this table torch's handle forgets
        self._left = -1 if self.recording else self._left
        self.recording.clear()
        self._calls.clear()
        self._depth = 0

    def _start(self) -> None:
        self.recording = [
            register_module_forward_pre_hook(self._before),  # type: ignore[arg-type]  # its own page allows new arguments
            register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        self._depth = 0
        self._thread = get_ident()
        self._left = WINDOW

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._thread != get_ident():
            return
        self._depth += 1
        if self._depth != 1 or self._replaying or torch.compiler.is_compiling() or len(self._calls) >= MOST_CALLS or not torch.is_grad_enabled():
            return
        if _in_transform() is not None or _tracing() is not None:
            return  # a call of the inside of a transform means nothing outside of it
        with torch.no_grad(), without_function_modes():
            self._calls.append(
                _Call(
                    module,
                    _cloned(args),
                    {},
                    RandomSnapshot(),
                    [(m, name, b.detach().clone()) for m in module.modules() for name, b in m._buffers.items() if b is not None],
                    [(m, {k: v for k, v in vars(m).items() if isinstance(v, int | float | str)}) for m in module.modules()],
                )
            )

    def _after(self, module: nn.Module, args: Any, *rest: Any) -> None:
        # Where the call itself raised, torch calls a hook that always wants to be called without the keywords.
        kwargs, output = rest if len(rest) == 2 else ({}, rest[-1])
        if self._thread != get_ident():
            return
        self._depth = max(0, self._depth - 1)
        if self._depth != 0 or self._replaying or not self._calls:
            return
        call = self._calls[-1]
        if call.module is module and call.result is None:
            with torch.no_grad(), without_function_modes():
                call.kwargs = _cloned(kwargs)  # a global hook is given them only now
                call.result = [t.detach().clone() for t in _results(output)]

    def _replay(self, run: Run) -> Verdict | None:
        step = run.tally.steps
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            return Verdict("unknown", "with several processes a replay in one of them would wait for the others for ever", step)
        with torch.no_grad(), without_function_modes():
            bad = next((c for c in self._calls if c.result is not None and not all(is_finite(t) for t in c.result)), None)
        if bad is None:
            return Verdict("unknown", "the results of the model's own calls were finite: what makes the loss of them is not replayed", step)
        name = type(bad.module).__name__
        try:
            again = self._again(run, bad)
        except Exception as error:  # a module that cannot be called twice with the same arguments must not end the script
            _LOG.debug("a forward pass could not be replayed", exc_info=True)
            return Verdict("unknown", f"{name} could not be called once more: {error}", step)
        if _same_bits(bad.result or [], again):
            return Verdict("persistent", f"{name} gives the same bits again for the same inputs, state and draws", step)
        return Verdict("transient", f"{name} gives another result for the same inputs, state and draws", step)

    def _again(self, run: Run, call: _Call) -> list[Tensor]:
        """The call once more, in the state that it was made in; afterwards everything is as it was before."""
        now = RandomSnapshot()
        attributes = [(m, {k: vars(m).get(k) for k in kept}) for m, kept in call.attributes]
        resume = run.pause_recording()
        self._replaying = True
        own: list[tuple[nn.Module, str, Tensor | None]] = []
        try:
            call.random.restore()
            # Copies stand in for the buffers: a write to the real ones would be seen by the backward pass that is still to come.
            own = [(module, name, module._buffers[name]) for module, name, _ in call.buffers]
            for module, name, copy in call.buffers:
                module._buffers[name] = copy
            for module, values in call.attributes:
                vars(module).update(values)
            with torch.enable_grad():
                return [t.detach() for t in _results(call.module(*_cloned(call.args), **_cloned(call.kwargs)))]
        finally:
            self._replaying = False
            resume()
            for module, name, buffer in own:
                module._buffers[name] = buffer
            for module, values in attributes:
                vars(module).update(values)
            now.restore()

    def _give(self, run: Run, verdict: Verdict) -> None:
        if verdict.kind == "unknown" and self.given:
            return
        self.given = [v for v in self.given if v.kind != "unknown"] + [verdict]
        if verdict.kind == "transient":
            run.note(
                "NS809", "observed", "replay", message=f"transient: {verdict.reason}: flaky hardware, a race, or an operation without a defined order"
            )
        elif verdict.kind == "persistent":
            run.note("NS506", "observed", "replay", message=f"persistent: {verdict.reason}: the fault lies in the numbers")


_in_transform = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state


def _results(value: Any) -> Iterator[Tensor]:
    return (x for x in tensors_in(value) if x.is_floating_point() or x.is_complex())


def _cloned(value: Any) -> Any:
    """Nested data with copies of its tensors, which keep whether they ask for a gradient; everything else is handed on."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad and (value.is_floating_point() or value.is_complex()))
    if isinstance(value, dict) and type(value) is dict:
        return {key: _cloned(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cloned(item) for item in value)
    return value


def _same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    """Equal shapes and numbers, any NaN equal to any NaN."""
    if len(first) != len(second):
        return False
    return all(
        a.shape == b.shape and torch.equal(torch.isnan(a), torch.isnan(b)) and torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0))
        for a, b in zip(first, second, strict=True)
    )
