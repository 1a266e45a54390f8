"""What guards of reductions share: each element of the result is made of a row of the one argument that counts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.gradient_filter import again, filtered, with_own_numbers
from instrument.guards.result import AbstractResultGuard, Call, came_in
from instrument.guards.rows import elements_of_rows, reduced_dims
from instrument.runtime import RUNTIME, is_plain


class AbstractReductionGuard(AbstractResultGuard):
    """A guard of an operation that makes one number, or a number for each row, of one argument."""

    operand_name: ClassVar[str] = "input"
    dim_position: ClassVar[int] = 1

    @abstractmethod
    def rows(self, call: Call, x: Tensor, out: Tensor) -> Tensor:
        """Elements of the result behind which a gradient may not be finite (bool, of its shape). Too many do no harm. Both are detached."""

    @abstractmethod
    def bounded(self, call: Call, x: Tensor, out: Tensor, bad: Tensor) -> Tensor:
        """The result with a finite value at `bad`."""

    def dims(self, call: Call, x: Tensor) -> tuple[int, ...] | None:
        """The dimensions that the call reduces; None for all of them, or where it does not say."""
        return reduced_dims(call, x, self.dim_position)

    def settled(self, call: Call) -> Any:
        x = call.argument(0, self.operand_name)
        if not is_plain(x) or not x.is_cpu:
            return call.out
        outs = call.out if isinstance(call.out, tuple) else (call.out,)
        settled = self.settled_results(call, x, list(outs))
        if all(new is old for new, old in zip(settled, outs, strict=True)):
            return call.out
        return settled[0] if not isinstance(call.out, tuple) else type(call.out)(settled)  # type: ignore[call-arg]

    def settled_results(self, call: Call, x: Tensor, outs: list[Tensor]) -> list[Tensor]:
        """The results to return. The first of several decides about all: the mean beside a variance is never at fault."""
        out = outs[0]
        dims = self.dims(call, x)
        broken = ~torch.isfinite(out.detach())
        bad = broken & self._made_of_finite(x.detach(), out, dims) if bool(broken.any()) else broken
        any_bad = bool(bad.any())
        site = RUNTIME.run.site()
        if any_bad:
            self.born(call, bad, x, site)
        written = call.kwargs.get("out") is not None
        if not written and self.neutralises(out):
            rows = self.rows(call, x.detach(), out.detach()) | bad
            if bool(rows.any()):
                behind = elements_of_rows(rows, x, dims)
                told = self.told(call, x, site, elements_of_rows(came_in(broken & ~bad, out), x, dims))
                inner = again(call.original, call.args, call.kwargs, {call.key(0, self.operand_name): filtered(x, behind, told)})
                inners = inner if isinstance(inner, tuple) else (inner,)
                flags = [rows if rows.shape == o.shape else torch.ones_like(o, dtype=torch.bool) for o in outs]
                outs = [with_own_numbers(i, o, flag, told) for i, o, flag in zip(inners, outs, flags, strict=True)]
        if any_bad and self.bounds_forward(site):
            self.note_bounded(call, bad, x, site)
            finite = RUNTIME.run.armed.within(self.bounded(call, x.detach(), out.detach(), bad))
            mended = torch.where(bad, finite, outs[0].detach() if written else outs[0])
            outs[0] = outs[0].copy_(mended) if written else mended
        return outs

    def _made_of_finite(self, x: Tensor, out: Tensor, dims: tuple[int, ...] | None) -> Tensor:
        """Elements of the result whose row is finite; where the call does not say which rows, all of the argument counts."""
        finite = torch.isfinite(x)
        if dims is not None:
            for dim in reversed(dims):
                finite = finite.all(dim=dim, keepdim=out.dim() == x.dim())
            if finite.shape == out.shape:
                return finite
        return torch.isfinite(x).all().expand_as(out)
