"""What guards of a pole or a corner share: log at 0, division by 0, sqrt at 0, acos at 1.

At such an element the forward result may be legal (log(0) = -inf in a mask) while the derivative is infinite or undefined, and whatever the
gradient that arrives there, 0 included, what leaves is NaN or Inf: the `where` trap. So, only where such an element is present:

- forward: the value torch gave stays, unless the config or an earlier failure at this line asks for a bounded one;
- backward: the operation is evaluated once more with a harmless argument at those elements, and torch's own value is put over its result
  there. The gradient is 0 exactly at those elements and bitwise torch's own at all others, at every order;
- a non-finite result made of finite numbers is remembered, and named if the step fails.

Nothing here runs while results are finite and away from the edge: the price then is one look at the result.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import AbstractGuard, Function, Spelling, is_compiling, mimic
from instrument.runtime import RUNTIME, function_modes, is_plain, without_function_modes

_aminmax = torch.aminmax


class AbstractEdgeGuard(AbstractGuard):
    """A guard of an operation with an edge. A subclass says where the edge is and what a bounded result would be."""

    section: ClassVar[str]
    """The config section that rules it (`log`, `sqrt`, `division`): its `bound_forward` and `gradient`."""
    operand: ClassVar[int] = 0
    """Position of the argument that has the edge: 0, or 1 for a divisor."""
    operand_name: ClassVar[str] = "input"
    tells_by_result: ClassVar[bool] = True
    """True if every element at the edge shows as a non-finite result; else `is_suspicious` must ask more of tensors that need a gradient."""

    @abstractmethod
    def edge(self, op: str, operand: Tensor) -> Tensor:
        """Elements of `operand` at which the derivative is not finite (a bool tensor of its shape)."""

    @abstractmethod
    def harmless(self, op: str) -> float:
        """An argument well inside the domain."""

    @abstractmethod
    def bounded(self, op: str, out: Tensor, bad: Tensor) -> Tensor:
        """`out` with a finite value at the elements in `bad` (non-finite results of finite arguments), no gradient needed."""

    def is_suspicious(self, op: str, low: float, high: float) -> bool:
        """Whether results in [low, high] (all finite) can come from an element at the edge. Asked only where a gradient is needed."""
        return False

    def message(self, op: str, count: int, total: int) -> str:
        """What the event says of `count` of `total` elements at the edge."""
        return f"{op} of {count} of {total} elements at the edge of its domain"

    # The mechanism ----------------------------------------------------------------------------------------------------

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        """Calls the original, looks at the range of the result, and takes the slow road only if something is there."""
        op = spelling.op
        if spelling.inplace:
            return self._inplace(original, spelling)

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            if is_compiling() or not RUNTIME.active or not is_plain(out) or not out.is_cpu or not out.numel():
                return out
            if function_modes():
                with without_function_modes():
                    return judged(out, args, kwargs)
            return judged(out, args, kwargs)

        def judged(out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            needs_gradient = out.requires_grad
            low_t, high_t = _aminmax(out.detach() if needs_gradient else out)
            low, high = low_t.item(), high_t.item()
            # NaN fails every comparison, so only finite ranges pass.
            if -_INF < low and high < _INF and not (needs_gradient and self.is_suspicious(op, low, high)):
                return out
            return self._slow(original, op, out, args, kwargs)

        return guarded

    def _inplace(self, original: Function, spelling: Spelling) -> Function:
        """In place the argument is gone afterwards, so a copy decides: taken only where the result turns out bad would be too late for its
        gradient. The out-of-place form runs and its result is written over the argument, which autograd follows."""
        functional = self.plain_form(spelling.op)
        guarded_form = self.stand_in(functional, Spelling(spelling.owner, spelling.name.rstrip("_"), spelling.op)) if functional is not None else None

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            x: Any = args[0] if args else kwargs.get("input")
            if is_compiling() or guarded_form is None or not RUNTIME.active or not is_plain(x) or not x.is_cpu or not x.numel():
                return original(*args, **kwargs)
            needs_gradient = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in (*args, *kwargs.values()))
            operand = self._operand(args, kwargs)
            with without_function_modes():
                at_edge = needs_gradient and is_plain(operand) and bool(self.edge(spelling.op, operand.detach()).any())
            if not at_edge or (x.is_leaf and x.requires_grad):  # a leaf: torch's own error
                # No gradient is at stake: the value is all there is, and it can be judged after the fact.
                out = original(*args, **kwargs)
                with without_function_modes():
                    low, high = (t.item() for t in _aminmax(out.detach()))
                    if not (-_INF < low and high < _INF):
                        RUNTIME.run.born(self.code, spelling.op + "_", message=f"{spelling.op}_ gave a non-finite result", x=out)
                return out
            # A form that keeps its argument for backward must not keep the tensor that is overwritten next.
            args, kwargs = ((x.clone(), *args[1:]), kwargs) if args else (args, {**kwargs, "input": x.clone()})
            return x.copy_(guarded_form(*args, **kwargs))

        return guarded

    def plain_form(self, op: str) -> Function | None:
        """The out-of-place function of an in-place spelling, None where there is none."""
        return _ORIGINALS.get(op)

    def _operand(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[self.operand] if len(args) > self.operand else kwargs.get(self.operand_name)

    def _slow(self, original: Function, op: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = RUNTIME.run
        operand = self._operand(args, kwargs)
        if run.allows(op):
            return out
        if kwargs.get("out") is not None or not is_plain(operand):
            self._remember(op, out, args, kwargs)
            return out
        made_bad = ~torch.isfinite(out.detach()) & _all_finite(out, args, kwargs)
        any_bad = bool(made_bad.any())
        site = run.site()
        if any_bad:
            run.born(self.code, op, message=self.message(op, int(made_bad.sum()), out.numel()) + ": the result is not finite", x=operand, site=site)
        section = getattr(run.config, self.section)
        forward = run.policy.act and any_bad and (section.bound_forward or run.is_armed(site))
        edge = self.edge(op, operand.detach())
        backward = run.policy.act and section.gradient == "neutralise" and out.requires_grad and bool(edge.any())
        if not forward and not backward:
            return out
        value = run.within(self.bounded(op, out.detach(), made_bad)) if forward else out.detach()
        if forward:
            run.note(
                self.code,
                "bounded",
                op,
                site=site,
                x=operand,
                message=self.message(op, int(made_bad.sum()), out.numel()) + "; the result was bounded there",
                fired=True,
            )
            if not backward:
                return torch.where(made_bad, value, out)
        safe = torch.where(edge, torch.full_like(operand, self.harmless(op)), operand)
        inner = (
            original(*_replaced(args, self.operand, safe), **kwargs)
            if len(args) > self.operand
            else original(*args, **{**kwargs, self.operand_name: safe})
        )
        at_edge = edge.expand_as(out) if edge.shape != out.shape else edge
        result = torch.where(at_edge | made_bad if forward else at_edge, value, inner)
        count, total = int(at_edge.sum()), out.numel()
        result.register_hook(self._told_when_reached(op, site, operand, count, total))  # type: ignore[no-untyped-call]
        return result

    def _remember(self, op: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bad = ~torch.isfinite(out.detach()) & _all_finite(out, args, kwargs)
        if bool(bad.any()):
            RUNTIME.run.born(self.code, op, message=self.message(op, int(bad.sum()), out.numel()) + ": the result is not finite", x=out)

    def _told_when_reached(self, op: str, site: Any, operand: Tensor, count: int, total: int) -> Callable[[Tensor], None]:
        """Says that a gradient was neutralised, once a gradient really arrives: a graph that nobody differentiates is no finding."""
        detached = operand.detach()

        def told(gradient: Tensor) -> None:
            if RUNTIME.active:
                RUNTIME.run.note(
                    self.code,
                    "neutralised",
                    op,
                    site=site,
                    x=detached,
                    message=self.message(op, count, total) + ": its gradient there would be NaN or Inf and was set to 0",
                    fired=True,
                )

        return told


_INF = float("inf")

# Out-of-place functions, looked up before anything is replaced.
_ORIGINALS: dict[str, Function] = {
    name: getattr(torch, name)
    for name in (
        "log",
        "log2",
        "log10",
        "log1p",
        "reciprocal",
        "rsqrt",
        "sqrt",
        "acos",
        "asin",
        "atanh",
        "acosh",
        "pow",
        "div",
        "xlogy",
        "logit",
        "erfinv",
    )
    if hasattr(torch, name)
}


def _replaced(args: tuple[Any, ...], position: int, new: Any) -> tuple[Any, ...]:
    return (*args[:position], new, *args[position + 1 :])


def _all_finite(out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Elements of the result whose tensor arguments are all finite there (arguments broadcast to the result)."""
    finite = torch.ones((), dtype=torch.bool, device=out.device)
    for value in (*args, *(v for k, v in kwargs.items() if k != "out")):
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            finite = finite & torch.isfinite(value.detach())
    try:
        return finite.expand_as(out)
    except RuntimeError:  # a reduction: all of the input counts
        return finite.all().expand_as(out)
