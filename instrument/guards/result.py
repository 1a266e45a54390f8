"""What guards that judge an operation by its result share: one look on the healthy path, and three answers where something is there.

- a non-finite result made of finite numbers is remembered (`Run.born`), and named if the step fails;
- a gradient that would be NaN or Inf is set to 0 at exactly those elements (`gradient_filter`), and said when a gradient really arrives;
- where the config asks for it, or the line spoiled a step before, the result itself is bounded.

On an accelerator nothing is looked at: a read for each operation would stall it. The gradients are judged at the step.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import AbstractGuard, Function, Spelling, is_traced, mimic
from instrument.guards.gradient_filter import Told, again, can_filter, filtered, with_own_numbers
from instrument.guards.half_precision import in_float32
from instrument.guards.hand_over import call_on, is_foreign, is_handled, judging
from instrument.runtime import QUIET, RUNTIME, is_plain, is_plain_on_cpu, without_function_modes

_vector_norm = torch.linalg.vector_norm
_sum = torch.sum
_amin = torch.amin
_aminmax = torch.aminmax
_grad_enabled = torch.is_grad_enabled


# Each look is the cheapest reduction that answers its question: sum, amin and amax read memory at its speed, aminmax takes three times as long in
# float32, and a norm ten times in float16. What is only read is taken by `data`: `detach` goes through the dispatcher.


def total(out: Tensor) -> float:
    """A number that is not finite if an element is not. It may overflow where no element does: then the exact question is asked."""
    values = out.data if out.requires_grad else out
    # Half types are added up in float32 anyway; only there does the sum fit.
    result: float = (_sum(values, dtype=torch.float32) if out.dtype.itemsize == 2 else _sum(values)).item()
    return result


def magnitude(out: Tensor) -> float:
    """A number that is not finite if an element is not, and at least the largest magnitude. It may overflow where no element does: then the
    exact question is asked."""
    values = out.data if out.requires_grad else out
    if out.dtype is torch.float16:
        low, high = _aminmax(values)
        return max(abs(low.item()), abs(high.item()))
    result: float = _vector_norm(values).item()
    return result


def smallest(out: Tensor) -> float:
    """The smallest element; NaN if there is one."""
    result: float = _amin(out.data if out.requires_grad else out).item()
    return result


def came_in(bad: Tensor, out: Tensor) -> Tensor:
    """Of the elements of a result that are not finite, as what they were made of was not: those made of a number that had gone bad before. -Inf made
    of -Inf is a mask that went through, and what its gradient does there is the operation's own matter."""
    return bad & ~torch.isneginf(out.detach())


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a guarded operation and what it gave."""

    original: Function
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def key(self, position: int, name: str) -> int | str:
        """Where that argument stands, for `gradient_filter.again`."""
        return position if len(self.args) > position else name


class AbstractResultGuard(AbstractGuard):
    """A guard that calls the operation as the script did and judges the result."""

    section: ClassVar[str]
    """The config section that rules it: its `bound_forward` and `gradient`."""

    @abstractmethod
    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """One cheap look: True if nothing can be wrong. False only leads to the exact questions of `settled`."""

    def answer(self, call: Call) -> Any:
        """The result as it is where the config's allow-list covers it, else the settled one."""
        if RUNTIME.run.allows(call.op):
            return call.out
        wide = in_float32(call.op, call.original, call.out, call.args, call.kwargs, self.code_for(call))
        return self.settled(call) if wide is None else wide

    @abstractmethod
    def settled(self, call: Call) -> Any:
        """The result to return where `is_clear` is not sure."""

    def told_by(self, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The tensor that says whether this call may be looked at."""
        return out

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        """Calls the original, looks at the result, and asks more only where something may be wrong."""
        op = spelling.op
        if spelling.inplace:
            return self._in_place(original, spelling)
        is_clear, told_by = self.is_clear, self.told_by
        told_by_result = type(self).told_by is AbstractResultGuard.told_by

        def judge(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            seen = out if told_by_result else told_by(out, args, kwargs)
            if not is_plain_on_cpu(seen) or not seen.numel() or is_clear(op, out, args, kwargs):
                return out
            return self.answer(Call(original, op, args, kwargs, out))

        return judging(original, spelling, judge)

    def out_of_place(self, op: str) -> Function:
        """torch's own function of an operation, as it was before anything was replaced."""
        return _ORIGINALS[op]

    def _in_place(self, original: Function, spelling: Spelling) -> Function:
        """The argument is gone afterwards, so the result is tried out of place first. A healthy call then happens exactly as it was written."""
        op = spelling.op
        form = self.out_of_place(op)

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if is_traced() or not RUNTIME.active or (QUIET and not _grad_enabled()):
                return original(*args, **kwargs)
            if is_handled(args) and is_foreign(args, kwargs):
                return call_on(guarded, original, args, kwargs)
            x: Any = args[0] if args else kwargs.get("self")
            if not is_plain_on_cpu(x) or not x.numel() or (x.is_leaf and x.requires_grad):
                return original(*args, **kwargs)
            with without_function_modes():
                try:
                    preview = form(*args, **kwargs)
                except (RuntimeError, TypeError, IndexError, ValueError):
                    return original(*args, **kwargs)  # whatever is wrong with the call, torch says it
                if not is_plain(preview) or preview.shape != x.shape or preview.dtype is not x.dtype or self.is_clear(op, preview, args, kwargs):
                    return original(*args, **kwargs)
                if RUNTIME.run.allows(op):
                    return original(*args, **kwargs)
                settled = self.settled(Call(form, op, args, kwargs, preview))
                return original(*args, **kwargs) if settled is preview else x.copy_(settled)

        return guarded

    # What `settled` is made of ----------------------------------------------------------------------------------------

    def code_for(self, call: Call) -> str:
        """The finding's code; a guard whose operations belong to several findings tells them apart here."""
        return self.code

    def message(self, call: Call) -> str:
        """What is at fault, in the words of the event: `division by 0`."""
        return f"{call.op} at the edge of its domain"

    def bounds_forward(self, site: Any) -> bool:
        """Whether a non-finite result is bounded at this line."""
        run = RUNTIME.run
        return bool(run.policy.act and (getattr(run.config, self.section).bound_forward or RUNTIME.run.armed.holds(site)))

    def neutralises(self, out: Tensor) -> bool:
        """Whether the gradient of this result is to be filtered."""
        run = RUNTIME.run
        return bool(run.policy.act and out.requires_grad and getattr(run.config, self.section).gradient == "neutralise" and can_filter())

    def born(self, call: Call, bad: Tensor, x: Any, site: Any) -> None:
        """Remember that `bad` elements of the result are not finite although what they were made of is."""
        what = f"{self.message(call)}: {int(bad.sum())} of {bad.numel()} elements of the result are not finite"
        run = RUNTIME.run
        shown = x if isinstance(x, Tensor) else None
        result = call.out if isinstance(call.out, Tensor) else None
        trend = run.ranges.result_trend(call.op)
        run.search.born(self.code_for(call), call.op, message=what, x=shown, site=site, trend=trend, result=result)

    def note_bounded(self, call: Call, bad: Tensor, x: Any, site: Any) -> None:
        """Say that the result was bounded at `bad`."""
        what = f"{self.message(call)}: {int(bad.sum())} of {bad.numel()} elements of the result were not finite and were bounded"
        run = RUNTIME.run
        shown = x if isinstance(x, Tensor) else None
        run.note(self.code_for(call), "bounded", call.op, message=what, x=shown, site=site, fired=True, trend=run.ranges.result_trend(call.op))

    def told(self, call: Call, x: Any, site: Any, came_in: Tensor | None = None) -> Told:
        """Says that a gradient was neutralised, once one really arrives: a graph that nobody differentiates is no finding.

        Args:
            came_in: the elements made of a number that was not finite before this operation (bool). Where those alone were neutralised, the
                operation is not at fault: that is a consequence of whatever made the number.
        """
        code, op, message = self.code_for(call), call.op, self.message(call)
        detached = x.detach() if isinstance(x, Tensor) else None

        def say(bad: Tensor) -> None:
            if not RUNTIME.active:
                return
            done = f"{int(bad.sum())} elements of its gradient would be NaN or Inf and were set to 0"
            if came_in is not None and came_in.shape == bad.shape and not bool((bad & ~came_in).any()):
                RUNTIME.run.note("NS506", "neutralised", op, site=site, x=detached, message=f"{op} of numbers that are NaN or Inf already: {done}")
            else:
                RUNTIME.run.note(code, "neutralised", op, site=site, x=detached, message=f"{message}: {done}", fired=True)

        return say


class AbstractElementwiseGuard(AbstractResultGuard):
    """An operation whose every element is made of the elements at the same place of its operands, which broadcast."""

    operands: ClassVar[tuple[str, ...]] = ("input",)
    """Names of the operands, in order."""

    @abstractmethod
    def edge(self, op: str, operands: tuple[Any, ...], out: Tensor) -> Tensor:
        """Elements at which a gradient may not be finite (bool, broadcastable to the result). Too many do no harm: only what is not finite is
        altered. `operands` are detached; numbers stay numbers."""

    @abstractmethod
    def bounded(self, op: str, operands: tuple[Any, ...], out: Tensor, bad: Tensor) -> Tensor:
        """The result with a finite value at `bad`, which other elements need not keep."""

    def settled(self, call: Call) -> Any:
        out = call.out
        values = [call.argument(i, name) for i, name in enumerate(self.operands)]
        tensors = [v for v in values if isinstance(v, Tensor)]
        if any(v.is_complex() or (v.is_floating_point() and not (is_plain(v) and v.is_cpu)) for v in tensors):
            return out
        plain = tuple(v.detach() if isinstance(v, Tensor) else v for v in values)
        broken = ~torch.isfinite(out.detach())
        bad = broken
        for value in plain:
            if isinstance(value, Tensor):
                bad = bad & torch.isfinite(value)
        any_bad = bool(bad.any())
        site = RUNTIME.run.site()
        shown = next((v for v in reversed(tensors) if v.is_floating_point()), out)
        if any_bad:
            self.born(call, bad, shown, site)
        result = out
        if call.kwargs.get("out") is None and self.neutralises(out):
            at = self.edge(call.op, plain, out.detach()).expand_as(out)
            at = at | bad if any_bad else at
            if bool(at.any()):
                result = self._filtered(call, values, at, self.told(call, shown, site, came_in(broken & ~bad, out)))
        if any_bad and self.bounds_forward(site):
            self.note_bounded(call, bad, shown, site)
            finite = RUNTIME.run.armed.within(self.bounded(call.op, plain, out.detach(), bad))
            if call.kwargs.get("out") is not None:
                return out.copy_(torch.where(bad, finite, out))
            result = torch.where(bad, finite, result)
        return result

    def _filtered(self, call: Call, values: list[Any], at: Tensor, told: Told) -> Tensor:
        """The operation on operands whose gradients are filtered, element by element: before the sum that broadcasting brings."""
        out: Tensor = call.out
        replaced: dict[int | str, Tensor] = {}
        for position, (name, value) in enumerate(zip(self.operands, values, strict=True)):
            if isinstance(value, Tensor) and value.requires_grad:
                if value.dtype is not out.dtype:
                    # As torch does it: converted first, so that the sum over a broadcast dimension is taken in the result's dtype. On the way
                    # back the conversion itself may overflow.
                    value = filtered(value, at.float().sum_to_size(value.shape) > 0.0, told).to(out.dtype)
                replaced[call.key(position, name)] = filtered(value.expand_as(out), at, told)
        return with_own_numbers(again(call.original, call.args, call.kwargs, replaced), out, at, told)


_ORIGINALS: dict[str, Function] = {
    name: getattr(owner, name)
    for owner in (torch.special, torch)
    for name in dir(owner)
    if not name.startswith("_") and callable(getattr(owner, name, None)) and not isinstance(getattr(owner, name), type)
}
"""Out-of-place functions, looked up before anything is replaced."""
