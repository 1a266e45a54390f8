"""Finiteness: one-pass checks, and a summary of an offending tensor for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def dense_values(x: Tensor) -> Tensor:
    """The numbers of `x` as a dense real tensor without autograd history.

    Sparse tensors give their stored values (an uncoalesced one its stored parts, whose sum is what counts), complex
    ones the pairs of real and imaginary parts, DTensors their local shard.
    """
    x = x.detach()
    if hasattr(x, "to_local"):
        x = x.to_local()
    if x.layout is torch.sparse_coo:
        x = x._values()
    elif x.layout is not torch.strided:
        x = x.values()
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def largest_magnitude(x: Tensor) -> Tensor:
    """max |x| as a 0-dim tensor: NaN if any element is NaN, inf if any is infinite, 0 if empty. One pass, no copy."""
    values = dense_values(x)
    if values.numel() == 0:
        return values.new_zeros(())
    low, high = torch.aminmax(values)  # propagates NaN
    return torch.maximum(low.neg(), high)


def is_finite(x: Tensor) -> bool:
    """True if no element of `x` is NaN or infinite. Integer and bool tensors are finite. Reads one number from the device."""
    if not (x.is_floating_point() or x.is_complex()):
        return True
    if type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.layout is torch.strided and x.is_floating_point() and x.numel():
        # On the CPU two numbers are read sooner than they are joined.
        low, high = torch.aminmax(x.detach())
        return math.isfinite(low.item()) and math.isfinite(high.item())
    return math.isfinite(largest_magnitude(x).item())


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """What a person needs to know of a tensor that went wrong. Ranges are over the finite elements (None: there are none)."""

    shape: tuple[int, ...]
    dtype: str
    device: str
    elements: int
    nan: int
    posinf: int
    neginf: int
    minimum: float | None
    maximum: float | None
    mean: float | None

    @property
    def nonfinite(self) -> int:
        """How many elements are NaN or infinite."""
        return self.nan + self.posinf + self.neginf

    def __str__(self) -> str:
        span = "no finite element" if self.minimum is None else f"[{self.minimum:.4g}, {self.maximum:.4g}]"
        bad = ", ".join(f"{count} {name}" for count, name in ((self.nan, "NaN"), (self.posinf, "+inf"), (self.neginf, "-inf")) if count)
        return f"{self.dtype}{list(self.shape)} {span}" + (f", {bad} of {self.elements}" if bad else "")


def summarise(x: Tensor) -> TensorSummary:
    """Counts and range of `x` (any dtype and layout). Reads from the device: for reports, not for hot paths."""
    values = dense_values(x)
    if not values.is_floating_point():
        values = values.to(torch.float64)
    finite = torch.isfinite(values)
    good = values[finite].double()
    some = good.numel() > 0
    return TensorSummary(
        shape=tuple(x.shape),
        dtype=str(x.dtype).removeprefix("torch."),
        device=str(x.device),
        elements=x.numel(),
        nan=int(torch.isnan(values).sum()),
        posinf=int(torch.isposinf(values).sum()),
        neginf=int(torch.isneginf(values).sum()),
        minimum=float(good.min()) if some else None,
        maximum=float(good.max()) if some else None,
        mean=float(good.mean()) if some else None,
    )


def nonfinite_positions(tensors: Sequence[Tensor]) -> list[int]:
    """The indices of the tensors that hold a NaN or an infinity."""
    return [i for i, x in enumerate(tensors) if not is_finite(x)]
