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

from instrument.guards.base import AbstractGuard, Function, Spelling, is_compiling, mimic
from instrument.guards.gradient_filter import Told, again, can_filter, filtered, with_own_numbers
from instrument.guards.step import QUIET
from instrument.runtime import RUNTIME, function_modes, is_plain, without_function_modes

_vector_norm = torch.linalg.vector_norm
_amin = torch.amin
_grad_enabled = torch.is_grad_enabled


def is_optimizer_arithmetic() -> bool:
    """True inside a library optimizer's own update: the step guard judges that by its outcome. A closure's forward and backward are the script's, and
    so is the update of an optimizer that the script itself defines: a fault in it has a line of its own."""
    return bool(QUIET) and not torch.is_grad_enabled()


def magnitude(out: Tensor) -> float:
    """A number that is not finite if an element is not, and at least the largest magnitude. It may overflow where no element does: then the
    exact question is asked."""
    return float(_vector_norm(out.detach() if out.requires_grad else out).item())


def smallest(out: Tensor) -> float:
    """The smallest element; NaN if there is one."""
    return float(_amin(out.detach() if out.requires_grad else out).item())


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
        return call.out if RUNTIME.run.allows(call.op) else self.settled(call)

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

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            if is_compiling() or not RUNTIME.active or (QUIET and not _grad_enabled()):
                return out
            seen = out if told_by_result else told_by(out, args, kwargs)
            if not is_plain(seen) or not seen.is_cpu or not seen.numel():
                return out
            if function_modes():
                with without_function_modes():
                    return out if is_clear(op, out, args, kwargs) else self.answer(Call(original, op, args, kwargs, out))
            return out if is_clear(op, out, args, kwargs) else self.answer(Call(original, op, args, kwargs, out))

        return guarded

    def out_of_place(self, op: str) -> Function:
        """torch's own function of an operation, as it was before anything was replaced."""
        return _ORIGINALS[op]

    def _in_place(self, original: Function, spelling: Spelling) -> Function:
        """The argument is gone afterwards, so the result is tried out of place first. A healthy call then happens exactly as it was written."""
        op = spelling.op
        form = self.out_of_place(op)

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            x: Any = args[0] if args else kwargs.get("self")
            if is_compiling() or not RUNTIME.active or not is_plain(x) or not x.is_cpu or not x.numel() or (x.is_leaf and x.requires_grad):
                return original(*args, **kwargs)
            if is_optimizer_arithmetic():
                return original(*args, **kwargs)
            with without_function_modes():
                try:
                    preview = form(*args, **kwargs)
                except (RuntimeError, TypeError, IndexError, ValueError):
                    return original(*args, **kwargs)  # whatever is wrong with the call, torch says it
                if not is_plain(preview) or preview.shape != x.shape or preview.dtype is not x.dtype or self.is_clear(op, preview, args, kwargs):
                    return original(*args, **kwargs)
                settled = self.answer(Call(form, op, args, kwargs, preview))
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
        return bool(run.policy.act and (getattr(run.config, self.section).bound_forward or RUNTIME.run.is_armed(site)))

    def neutralises(self, out: Tensor) -> bool:
        """Whether the gradient of this result is to be filtered."""
        run = RUNTIME.run
        return bool(run.policy.act and out.requires_grad and getattr(run.config, self.section).gradient == "neutralise" and can_filter())

    def born(self, call: Call, bad: Tensor, x: Any, site: Any) -> None:
        """Remember that `bad` elements of the result are not finite although what they were made of is."""
        what = f"{self.message(call)}: {int(bad.sum())} of {bad.numel()} elements of the result are not finite"
        RUNTIME.run.born(self.code_for(call), call.op, message=what, x=x if isinstance(x, Tensor) else None, site=site)

    def note_bounded(self, call: Call, bad: Tensor, x: Any, site: Any) -> None:
        """Say that the result was bounded at `bad`."""
        what = f"{self.message(call)}: {int(bad.sum())} of {bad.numel()} elements of the result were not finite and were bounded"
        RUNTIME.run.note(self.code_for(call), "bounded", call.op, message=what, x=x if isinstance(x, Tensor) else None, site=site, fired=True)

    def told(self, call: Call, x: Any, site: Any) -> Told:
        """Says that a gradient was neutralised, once one really arrives: a graph that nobody differentiates is no finding."""
        code, op, message = self.code_for(call), call.op, self.message(call)
        detached = x.detach() if isinstance(x, Tensor) else None

        def say(count: int) -> None:
            if RUNTIME.active:
                what = f"{message}: {count} elements of its gradient would be NaN or Inf and were set to 0"
                RUNTIME.run.note(code, "neutralised", op, site=site, x=detached, message=what, fired=True)

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
        bad = ~torch.isfinite(out.detach())
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
                result = self._filtered(call, values, at, self.told(call, shown, site))
        if any_bad and self.bounds_forward(site):
            self.note_bounded(call, bad, shown, site)
            finite = RUNTIME.run.within(self.bounded(call.op, plain, out.detach(), bad))
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
