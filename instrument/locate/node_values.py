"""What a node of an autograd graph gave, where it can be worked out from what was saved: operations that saved all that went in are asked again, and
the size of what sums, products and views of known numbers gave is bounded.

torch's operators are called below everything that a guard replaces, so that nothing is recorded here as the script's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from instrument.locate.node_names import PASSES_ON

_aten = torch.ops.aten

_AGAIN: dict[str, Callable[[Any, Mapping[str, Tensor]], Tensor]] = {
    "PowBackward0": lambda node, saved: _aten.pow(saved["self"], node._saved_exponent),
    "PowBackward1": lambda node, saved: _aten.pow(saved["self"], saved["exponent"]),
    "MulBackward0": lambda node, saved: _aten.mul(saved["self"], saved["other"]),
    "DivBackward0": lambda node, saved: _aten.div(saved["self"], saved["other"]),
    "MmBackward0": lambda node, saved: _aten.mm(saved["self"], saved["mat2"]),
    "BmmBackward0": lambda node, saved: _aten.bmm(saved["self"], saved["mat2"]),
    "AddmmBackward0": lambda node, saved: _linear(node, saved),
    "XlogyBackward0": lambda node, saved: _aten.xlogy(saved["self"], saved["other"]),
}
_OF_ONE = {
    "Log": "log", "Log2": "log2", "Log10": "log10", "Log1P": "log1p", "Lgamma": "lgamma", "Digamma": "digamma", "Acos": "acos", "Asin": "asin",
    "Acosh": "acosh", "Atanh": "atanh", "Erfinv": "erfinv", "Cosh": "cosh", "Sinh": "sinh", "SpecialEntr": "special_entr",
    "SpecialNdtri": "special_ndtri",
}  # fmt: skip


def asked_again(node: Any, saved: Mapping[str, Tensor]) -> Tensor | None:
    """The result of an operation that saved all that went in; None for any other, and where something of it is gone or packed away.

    Args:
        saved: what the node saved, by name.
    """
    name: str = node.name()
    again = _AGAIN.get(name)
    try:
        if again is not None:
            return again(node, saved)
        op = _OF_ONE.get(name.partition("Backward")[0])
        return None if op is None else getattr(_aten, op)(saved["self"])
    except (RuntimeError, TypeError, AttributeError, KeyError, ValueError, IndexError):
        return None


def _linear(node: Any, saved: Mapping[str, Tensor]) -> Tensor:
    """A linear layer's result. Its weight is saved only if its input wants a gradient, but a parameter stands behind the node either way. Without a
    bias that was computed (the fast weights of meta-learning) it is as finite as with one."""
    bias, _, transposed = (following for following, _ in node.next_functions)
    weight = saved["mat2"] if "mat2" in saved else transposed.next_functions[0][0].variable.t()
    shift = getattr(bias, "variable", None)
    return _aten.mm(saved["mat1"], weight) if shift is None else _aten.addmm(shift, saved["mat1"], weight)  # type: ignore[no-any-return]


Size = Callable[[Any], float]
"""The largest magnitude of something; infinite where it is not known or not finite."""


def largest_possible(node: Any, saved: Mapping[str, Tensor], size: Size, before: Size) -> float:
    """A bound on the size of what a node gave; infinite where none is known.

    Args:
        saved: what the node saved, by name.
        size: of a tensor.
        before: of what another node gave.
    """
    name: str = node.name()
    following = [other for other, _ in node.next_functions]
    if name.startswith(PASSES_ON):
        behind = [other for other in following if other is not None]
        return before(behind[0]) if len(behind) == 1 else math.inf
    if name == "MulBackward0":
        factors = (size(saved[key]) if key in saved else before(other) for key, other in zip(("self", "other"), following, strict=True))
        return math.prod(factors)
    if name.startswith(("AddBackward", "SubBackward")) and None not in following:
        first, second = map(before, following)
        return first + abs(float(node._saved_alpha)) * second
    if name.startswith("SumBackward"):
        return before(following[0]) * math.prod(int(n) for n in node._saved_self_sym_sizes)
    return before(following[0]) if name.startswith("MeanBackward") else math.inf
