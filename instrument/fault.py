"""What a fault makes of numbers: of a copy, as it flows through a training, or in memory, to be put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Value = Literal["nan", "inf", "-inf", "huge", "bitflip"]

VALUES: tuple[str, ...] = get_args(Value)

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_EXPONENT_TOP = {torch.float16: 14, torch.bfloat16: 14, torch.float32: 30, torch.float64: 62}
"""The highest bit of the exponent: flipping it turns a number of ordinary size into one near the dtype's end."""


@dataclass(frozen=True, slots=True)
class _Written:
    """Elements in memory that an injection changed, to be put back where nobody has written over them."""

    tensor: Tensor
    index: Tensor
    before: Tensor
    after: Tensor


class Fault:
    """Bad elements at drawn places of tensors.

    Args:
        value: one of `VALUES` or a number.
        elements: how many of a tensor; None: all.
        bit: which one "bitflip" flips; None: the highest of the exponent.
        seed: of the places.
    """

    def __init__(self, value: Value | float, elements: int | None, bit: int | None, seed: int) -> None:
        self._value = value
        self._elements = elements
        self._bit = bit
        self._generator = torch.Generator().manual_seed(seed)
        self._written: list[_Written] = []

    def _indices(self, count: int) -> Tensor:
        chosen = count if self._elements is None else min(self._elements, count)
        return torch.randperm(count, generator=self._generator)[:chosen]

    def bad(self, before: Tensor) -> Tensor:
        """What these elements become."""
        if self._value == "bitflip":
            integers = _INTEGERS[before.element_size()]
            bit = _EXPONENT_TOP[before.dtype] if self._bit is None else self._bit
            mask = 1 << bit
            mask -= (1 << (8 * before.element_size())) if bit == 8 * before.element_size() - 1 else 0  # the sign bit as a signed integer
            return (before.view(integers) ^ mask).view(before.dtype)
        return torch.full_like(before, self._number(before.dtype))

    def _number(self, dtype: torch.dtype) -> float:
        if self._value == "huge":
            return torch.finfo(dtype).max / 2.0
        return float(self._value)

    def spoilt(self, x: Tensor) -> tuple[Tensor, int]:
        """A copy of `x` with bad elements, and their count. The gradient of all elements goes on, as it does where a number goes bad by itself."""
        index = self._indices(x.numel()).to(x.device)
        bad = self.bad(x.detach().reshape(-1)[index])
        return _Spoilt.apply(x, index, bad), len(index)  # type: ignore[no-untyped-call]

    def write(self, x: Tensor) -> int:
        """Spoil elements of `x` in its memory; returns how many."""
        with torch.no_grad():
            flat = x.view(-1) if x.is_contiguous() else None
            index = self._indices(x.numel()).to(x.device)
            before = x.reshape(-1)[index].clone()
            after = self.bad(before)
            if flat is not None:
                flat[index] = after
            else:
                changed = x.reshape(-1).clone()
                changed[index] = after
                x.copy_(changed.view(x.shape))
        self._written.append(_Written(x.detach(), index, before, after))
        return len(index)

    def restore(self) -> None:
        """Put back what was written into memory, last first, where nobody has written over it since."""
        with torch.no_grad():
            for written in reversed(self._written):
                _restore(written)
        self._written.clear()


class _Spoilt(torch.autograd.Function):
    """Some elements exchanged in the forward pass; nothing in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, bad: Tensor) -> Tensor:
        """`x` with `bad` at the flat places `index`."""
        flat = x.reshape(-1).clone()
        flat[index] = bad
        return flat.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """What arrived."""
        return gradients[0], None, None


def _restore(written: _Written) -> None:
    flat = written.tensor.reshape(-1)
    now = flat[written.index]
    integers = _INTEGERS[now.element_size()]
    same = now.view(integers) == written.after.view(integers)
    if not bool(same.any()):
        return
    if written.tensor.is_contiguous():
        flat[written.index] = torch.where(same, written.before, now)
    else:
        changed = flat.clone()
        changed[written.index] = torch.where(same, written.before, now)
        written.tensor.copy_(changed.view(written.tensor.shape))
