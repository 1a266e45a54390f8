"""Decompositions whose derivative is undefined: equal eigenvalues or singular values, a singular R (NS706).

Hazard: the derivative of eigenvectors divides by differences of eigenvalues, that of singular vectors by differences of their squares, that of QR by
the diagonal of R. At a multiple of the identity, at zero or at a rank-deficient matrix the whole gradient is NaN. The gradient of the eigenvalues
or singular values alone is finite there, and its own derivative is not.
Forward: unchanged.
Backward: elements that would be NaN or Inf are 0, for the degenerate matrices of a batch only.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from instrument.guards.base import Spelling, spelled
from instrument.guards.gradient_filter import again, filtered, with_own_numbers
from instrument.guards.result import AbstractResultGuard, Call
from instrument.runtime import RUNTIME, is_plain

_VALUES = {"eigh": 0, "eigvalsh": None, "eig": 0, "eigvals": None, "svd": 1, "svdvals": None, "qr": 1}
"""Which result tells: the eigenvalues, the singular values, R. None: the only one."""


class SpectrumGuard(AbstractResultGuard):
    """eigh, eigvalsh, eig, eigvals, svd, svdvals and qr, in every spelling. Without a gradient they fall through in one branch."""

    code: ClassVar[str] = "NS706"
    section: ClassVar[str] = "sqrt"

    def spellings(self) -> list[Spelling]:
        found = []
        for op in _VALUES:
            found += spelled(op, (torch.linalg, op))
        for op in ("svd", "qr"):
            found += spelled(op, (torch, op), (torch.Tensor, op))
        return found

    def told_by(self, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if args else kwargs.get("A", kwargs.get("input"))

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        parts = out if isinstance(out, tuple) else (out,)
        if not any(part.requires_grad for part in parts):
            return True
        values = out if _VALUES[op] is None else out[_VALUES[op]]
        return values.numel() == 0 or not bool(_degenerate(op, values.detach()).any())

    def message(self, call: Call) -> str:
        return "qr of a matrix of deficient rank" if call.op == "qr" else f"{call.op} of a matrix with equal eigenvalues or singular values"

    def settled(self, call: Call) -> Any:
        parts = list(call.out) if isinstance(call.out, tuple) else [call.out]
        told_by = self.told_by(call.out, call.args, call.kwargs)
        if not is_plain(told_by) or call.kwargs.get("out") is not None or not self.neutralises(next(p for p in parts if p.requires_grad)):
            return call.out
        which = _VALUES[call.op]
        matrices = _degenerate(call.op, (call.out if which is None else call.out[which]).detach())
        site = RUNTIME.run.site()
        told = self.told(call, told_by, site)
        key: int | str = 0 if call.args else next(name for name in ("A", "input") if name in call.kwargs)
        inner = again(call.original, call.args, call.kwargs, {key: filtered(told_by, _over(matrices, told_by, 2), told)})
        inners = inner if isinstance(inner, tuple) else (inner,)
        own = [with_own_numbers(i, o, _over(matrices, o, o.dim() - matrices.dim()), told) for i, o in zip(inners, parts, strict=True)]
        return type(call.out)(own) if isinstance(call.out, tuple) else own[0]  # type: ignore[call-arg]


def _over(matrices: Tensor, x: Tensor, dims: int) -> Tensor:
    """A flag for each matrix, as a flag for each element of `x`."""
    return matrices.reshape((*matrices.shape, *(1,) * dims)).expand_as(x)


def _degenerate(op: str, values: Tensor) -> Tensor:
    """Which matrices of a batch have a derivative that may not be finite (bool, of the batch's shape)."""
    largest = torch.finfo(values.dtype).max
    if op == "qr":
        return (values.diagonal(dim1=-2, dim2=-1).abs() <= 1.0 / largest).any(-1)
    if op in ("svd", "svdvals"):
        # Descending: s_i^2 - s_j^2 is smallest between neighbours; a single value of 0 counts, since oblong matrices divide by it.
        near = (values[..., :-1] - values[..., 1:]) * (values[..., :-1] + values[..., 1:])
        return (near <= 1.0 / largest).any(-1) | (values[..., -1] <= 1.0 / largest)
    if op in ("eigh", "eigvalsh"):
        return ((values[..., 1:] - values[..., :-1]) <= 1.0 / largest).any(-1)
    # Eigenvalues of a general matrix come in no order, and those of a defective one part by the square root of the rounding.
    apart = (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()
    apart.diagonal(dim1=-2, dim2=-1).fill_(largest)
    size = values.abs().amax(-1)
    close: Tensor = apart.amin((-1, -2)) <= 4.0 * torch.finfo(values.dtype).eps ** 0.5 * size
    return close
