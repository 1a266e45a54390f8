"""Arguments at which torch's own gradient is NaN or Inf, for every guarded operation that has such a place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from instrument.guards import OPERATION_GUARDS, Spelling
from instrument.guards.exp import ExpGuard
from instrument.guards.result import AbstractResultGuard
from instrument.guards.softmax import SoftmaxGuard

ALL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDE = (torch.float32, torch.float64)
HALF = (torch.float16,)
INF = math.inf

Make = Callable[[torch.dtype], Sequence[Any]]


@dataclass(frozen=True)
class Edge:
    """One operation: `bad(dtype)` are arguments of which some have a gradient that is not finite, of order `order`; `good` are healthy.

    Lists become tensors that need a gradient, everything else is passed as it is.
    """

    bad: Make
    good: Make
    code: str
    order: int = 1
    dtypes: tuple[torch.dtype, ...] = ALL
    kwargs: dict[str, Any] = field(default_factory=dict)


def _same(*values: Any) -> Make:
    return lambda dtype: values


def _big(dtype: torch.dtype) -> float:
    return 2.0 * torch.finfo(dtype).max ** 0.5


def _tiny(dtype: torch.dtype) -> float:
    """A positive number whose reciprocal overflows."""
    return 0.25 / torch.finfo(dtype).max


_EYE, _DISTINCT, _ONES, _HUGE = [[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]], [[200.0, 0.0], [0.0, 200.0]]
_DEGENERATE, _HEALTHY = _same([_EYE, _DISTINCT]), _same([_DISTINCT, [[1.0, 0.5], [0.5, 4.0]]])
_RANK_ONE = _same([_ONES, _DISTINCT])

EDGES: dict[str, Edge] = {
    "div": Edge(_same([1.0, 0.0, 2.0, -3.0], [0.0, 0.0, 4.0, 2.0]), _same([1.0, 2.0], [3.0, -4.0]), "NS304"),
    "remainder": Edge(_same([1.0, 0.0, 2.0], [0.0, 0.0, 4.0]), _same([1.0, 2.0], [3.0, -4.0]), "NS304"),
    "fmod": Edge(_same([1.0, 0.0, 2.0], [0.0, 0.0, 4.0]), _same([1.0, 2.0], [3.0, -4.0]), "NS304"),
    "reciprocal": Edge(_same([0.0, -0.0, 2.0]), _same([2.0, -0.5]), "NS304"),
    "rsqrt": Edge(_same([0.0, 4.0]), _same([4.0, 0.25]), "NS304"),
    "pow": Edge(_same([0.0, 4.0, -1.0], 0.5), _same([1.0, 4.0], 0.5), "NS206"),
    "float_power": Edge(_same([0.0, 4.0, -1.0], 0.5), _same([1.0, 4.0], 0.5), "NS206"),
    "sqrt": Edge(_same([0.0, 4.0, -1.0]), _same([4.0, 0.25]), "NS704"),
    "hypot": Edge(_same([0.0, 3.0], [0.0, 4.0]), _same([3.0, 1.0], [4.0, 0.0]), "NS704"),
    "vector_norm": Edge(_same([[0.0, 0.0], [3.0, 4.0]]), _same([[1.0, 0.0], [3.0, 4.0]]), "NS704", order=2, kwargs={"dim": -1}),
    "norm": Edge(_same([[0.0, 0.0], [3.0, 4.0]]), _same([[1.0, 0.0], [3.0, 4.0]]), "NS704", order=2, kwargs={"dim": -1}),
    "matrix_norm": Edge(_same([[[0.0, 0.0]], [[3.0, 4.0]]]), _same([[[1.0, 0.0]], [[3.0, 4.0]]]), "NS704", order=2),
    "cosine_similarity": Edge(_same([[0.0, 0.0], [3.0, 1.0]], [[1.0, 0.0], [3.0, 4.0]]), _same([[3.0, 1.0]], [[3.0, 4.0]]), "NS303", dtypes=HALF),
    "var": Edge(_same([[1.0], [2.0]]), _same([[1.0, 2.0], [3.0, 3.0]]), "NS707", kwargs={"dim": -1}),
    "std": Edge(_same([[1.0], [2.0]]), _same([[1.0, 2.0], [3.0, 1.0]]), "NS707", kwargs={"dim": -1}),
    "var_mean": Edge(_same([[1.0], [2.0]]), _same([[1.0, 2.0], [3.0, 3.0]]), "NS707", kwargs={"dim": -1}),
    "std_mean": Edge(_same([[1.0], [2.0]]), _same([[1.0, 2.0], [3.0, 1.0]]), "NS707", kwargs={"dim": -1}),
    "prod": Edge(lambda d: ([[_big(d), _big(d), 0.0], [1.0, 2.0, 3.0]],), _same([[1.0, 0.0, 2.0]]), "NS708", kwargs={"dim": -1}),
    "cumprod": Edge(lambda d: ([[_big(d), _big(d), 2.0], [1.0, 2.0, 3.0]],), _same([[1.0, 0.0, 2.0]]), "NS708", kwargs={"dim": -1}),
    "logsumexp": Edge(_same([[-INF, -INF], [1.0, -INF]]), _same([[1.0, -INF], [0.0, 2.0]]), "NS106", kwargs={"dim": -1}),
    "logcumsumexp": Edge(_same([[-INF, -INF], [-INF, 1.0]]), _same([[1.0, -INF], [0.0, 2.0]]), "NS106", kwargs={"dim": -1}),
    "logaddexp": Edge(_same([-INF, 1.0], [-INF, 2.0]), _same([-INF, 1.0], [0.0, 2.0]), "NS106", dtypes=WIDE),
    "logaddexp2": Edge(_same([-INF, 1.0], [-INF, 2.0]), _same([-INF, 1.0], [0.0, 2.0]), "NS106", dtypes=WIDE),
    "acos": Edge(_same([1.0, -1.0, 0.5, 1.5]), _same([0.5, -0.9]), "NS605"),
    "asin": Edge(_same([1.0, -1.0, 0.5, 1.5]), _same([0.5, -0.9]), "NS605"),
    "acosh": Edge(_same([1.0, 2.0, 0.5]), _same([1.5, 3.0]), "NS605"),
    "atanh": Edge(_same([1.0, -1.0, 0.5]), _same([0.5, -0.9]), "NS605"),
    "erfinv": Edge(_same([1.0, -1.0, 0.5]), _same([0.5, -0.9]), "NS605"),
    "ndtri": Edge(_same([0.0, 1.0, 0.5]), _same([0.5, 0.9]), "NS605", dtypes=WIDE),
    "tan": Edge(_same([1.5703125, 0.5]), _same([0.5, 1.5]), "NS605", dtypes=HALF),
    "atan2": Edge(
        lambda d: ([0.25 * _big(d) ** -1.0, 1.0, 0.0], [0.25 * _big(d) ** -1.0, 2.0, 1.0]), _same([1.0, 0.0], [2.0, 1.0]), "NS605", dtypes=WIDE
    ),
    "log": Edge(lambda d: ([0.0, _tiny(d), -1.0, 0.5],), _same([0.5, 3.0]), "NS205"),
    "log2": Edge(lambda d: ([0.0, _tiny(d), 0.5],), _same([0.5, 3.0]), "NS205"),
    "log10": Edge(lambda d: ([0.0, _tiny(d), 0.5],), _same([0.5, 3.0]), "NS205"),
    "log1p": Edge(_same([-1.0, -2.0, 0.5]), _same([-0.5, 3.0]), "NS205"),
    "logit": Edge(_same([0.0, 1.0, 0.5]), _same([0.5, 0.9]), "NS205"),
    "lgamma": Edge(_same([0.0, 0.5]), _same([0.5, 3.0]), "NS205"),
    "digamma": Edge(_same([0.0, 0.5]), _same([0.5, 3.0]), "NS205"),
    "entr": Edge(_same([0.0, 0.5]), _same([0.5, 0.9]), "NS205"),
    "log_ndtr": Edge(lambda d: ([-_big(d), 0.5],), _same([0.5, -3.0]), "NS205", dtypes=WIDE),
    "xlogy": Edge(_same([0.0, 1.0, 1.0], [0.0, 0.0, 2.0]), _same([0.0, 1.0], [1.0, 2.0]), "NS205"),
    "xlog1py": Edge(_same([0.0, 1.0, 1.0], [-1.0, -1.0, 2.0]), _same([0.0, 1.0], [1.0, 2.0]), "NS205"),
    "eigh": Edge(_DEGENERATE, _HEALTHY, "NS706", dtypes=WIDE),
    "eigvalsh": Edge(_DEGENERATE, _HEALTHY, "NS706", order=2, dtypes=WIDE),
    "eig": Edge(_DEGENERATE, _HEALTHY, "NS706", dtypes=WIDE),
    "eigvals": Edge(_DEGENERATE, _HEALTHY, "NS706", order=2, dtypes=WIDE),
    "svd": Edge(_DEGENERATE, _HEALTHY, "NS706", dtypes=WIDE),
    "svdvals": Edge(_DEGENERATE, _HEALTHY, "NS706", order=2, dtypes=WIDE),
    "qr": Edge(_RANK_ONE, _HEALTHY, "NS706", dtypes=WIDE),
    "det": Edge(_same([[[0.0, 0.0], [0.0, 0.0]], _DISTINCT]), _HEALTHY, "NS703", order=2, dtypes=WIDE),
    "logdet": Edge(_RANK_ONE, _HEALTHY, "NS703", dtypes=WIDE),
    "slogdet": Edge(_RANK_ONE, _HEALTHY, "NS703", dtypes=WIDE),
    "matrix_exp": Edge(lambda d: ([[[20.0 * x for x in row] for row in _HUGE], _EYE],), _HEALTHY, "NS805", dtypes=WIDE),
    "matrix_power": Edge(lambda d: ([[[_big(d), 0.0], [0.0, _big(d)]], _EYE], 3), lambda d: (*_HEALTHY(d), 3), "NS805", dtypes=WIDE),
}

WITHOUT_EDGE = {
    "square": "its derivative, 2x, is finite wherever x is: only its overflow is guarded",
    "mean": "the mean of nothing sends its gradient to nothing",
    "nanmean": "as mean",
}
"""Guarded operations whose first gradient is never at fault, with the reason."""

GUARDS = [g for g in OPERATION_GUARDS if isinstance(g, AbstractResultGuard) and not isinstance(g, ExpGuard | SoftmaxGuard)]
SPELLINGS: list[Spelling] = [s for g in GUARDS for s in g.spellings()]


def arguments(values: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """Lists as leaves that need a gradient."""
    return [torch.tensor(v, dtype=dtype, requires_grad=True) if isinstance(v, list) else v for v in values]


def call(spelling: Spelling, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The results of a spelling as real tensors; in place it writes into what was computed from a leaf."""
    function = getattr(spelling.owner, spelling.name)
    if spelling.inplace:
        args = [args[0] * 1.0, *args[1:]]
    out = function(*args, **kwargs)
    parts = list(out) if isinstance(out, tuple) else [out]
    return [p.abs() if p.is_complex() else p for p in parts]


def gradients(results: Sequence[Tensor], leaves: Sequence[Tensor], *, order: int = 1, scale: float = 1.0) -> list[Tensor]:
    """Gradients of the results' sum, or the gradients of those, weighted so that none cancel."""
    outputs = [r for r in results if r.requires_grad]
    grads = torch.autograd.grad(outputs, leaves, [torch.full_like(r, scale) for r in outputs], create_graph=order > 1)
    for level in range(1, order):
        weights = [torch.arange(1.0, g.numel() + 1.0, dtype=g.dtype).reshape(g.shape) for g in grads]
        grads = torch.autograd.grad(grads, leaves, weights, create_graph=level + 1 < order)
    return list(grads)


def leaves_of(args: Sequence[Any]) -> list[Tensor]:
    """The tensors among the arguments."""
    return [a for a in args if isinstance(a, Tensor)]
