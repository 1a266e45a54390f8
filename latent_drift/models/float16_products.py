"""Products of float16 operands on processors without float16 arithmetic: formed in float32, rounded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PRODUCTS: Final = frozenset(
    {
        F.linear,
        F.scaled_dot_product_attention,
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.Tensor.mm,
        torch.Tensor.bmm,
    }
)
"""The products of the models, by every spelling they use; all are on autocast's list of operations in half precision."""


class _Float32Products(TorchFunctionMode):
    """Products that autocast would form in float16 are formed in float32 from operands rounded to float16, and rounded to float16.

    *Numerics*: what float16 units do (products and sums in float32, one rounding at the end), in the backward pass too. torch's
    own fallback gives the same to rounding, in scalar code: 4 ms for (1072, 128) by (128, 128), a step of training 9 times as long.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            product: Tensor = func(*map(_rounded, args), **{name: _rounded(value) for name, value in kwargs.items()})
            return product.half() if product.dtype == torch.float32 else product


def _rounded(value: Any) -> Any:
    """A float tensor's values in float16, held in float32; anything else as it is (float64 too, which autocast leaves alone)."""
    if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return value.half().float()
    return value


def has_float16_products() -> bool:
    """Whether this processor multiplies float16 matrices itself."""
    supported: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return supported


def float16_products(device_type: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context for forward passes under autocast to `dtype`: float32 products in place of float16 ones where those are emulated in scalar code.

    Elsewhere (another dtype, a device of its own, a processor that has them, inside torch.compile) it does nothing.
    """
    slow = device_type == "cpu" and dtype == torch.float16 and not torch.compiler.is_compiling() and not has_float16_products()
    return _Float32Products() if slow else nullcontext()
