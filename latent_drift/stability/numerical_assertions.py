"""Numerical assertions for users' code: what is wrong, where, with statistics; off by one switch.

Switched off they return their argument at once: no reduction, no device is synchronised. While a function is
being compiled they do nothing, since a check would break the graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from latent_drift.errors import NumericalError, UsageError
from latent_drift.numerics.dtypes import require_real
from latent_drift.numerics.finite import dense_values, summarise

_enabled = os.environ.get("LATENT_DRIFT_ASSERTIONS", "1").lower() not in ("0", "off", "false", "no")


def assertions_enabled() -> bool:
    """Whether assertions check anything.

    >>> with assertions(False):
    ...     assertions_enabled()
    False
    """
    return _enabled


def set_assertions(enabled: bool) -> None:
    """Switch all assertions of this module on or off (also: the environment variable `LATENT_DRIFT_ASSERTIONS=0`).

    >>> set_assertions(True)
    """
    global _enabled
    _enabled = enabled


@contextmanager
def assertions(enabled: bool) -> Iterator[None]:
    """Assertions on or off inside a block."""
    before = _enabled
    set_assertions(enabled)
    try:
        yield
    finally:
        set_assertions(before)


def assert_finite(x: Tensor, name: str = "tensor") -> Tensor:
    """`x` itself, if no element is NaN or infinite; any dtype and layout (of a sparse tensor, the stored values).

    Raises:
        NumericalError: names the tensor, its shape, dtype and device, how many elements are bad, and where the first one is.

    >>> import torch
    >>> assert_finite(torch.ones(2), "weights")
    tensor([1., 1.])
    """
    if not _enabled or torch.compiler.is_compiling() or not (x.is_floating_point() or x.is_complex()):
        return x
    bad = ~torch.isfinite(x.detach() if x.layout is torch.strided else dense_values(x))
    if bool(bad.any()):
        raise NumericalError(f"{name} is not finite: {summarise(x)} on {x.device}, first at {_first(bad)}")
    return x


def assert_in_range(x: Tensor, low: float, high: float, name: str = "tensor") -> Tensor:
    """`x` itself, if every element lies in [low, high] (NaN does not); integers too.

    Raises:
        NumericalError: as `assert_finite`.
        UsageError: `x` is complex or not strided.

    >>> import torch
    >>> assert_in_range(torch.tensor([0.5]), 0, 1, "p")
    tensor([0.5000])
    """
    if not _enabled or torch.compiler.is_compiling():
        return x
    if x.is_complex() or x.layout is not torch.strided:
        raise UsageError(
            f"assert_in_range: x must be a dense real tensor; got {x.dtype}, {str(x.layout).removeprefix('torch.')}; take .abs(), or its values"
        )
    values = x.detach()
    bad = ~((values >= low) & (values <= high))
    if bool(bad.any()):
        raise NumericalError(f"{name} leaves [{low}, {high}]: {summarise(x)} on {x.device}, {int(bad.sum())} elements, first at {_first(bad)}")
    return x


def assert_normalized(x: Tensor, dim: int = -1, name: str = "probabilities", p: float = 1.0, rtol: float | None = None) -> Tensor:
    """`x` itself, if along `dim` its non-negative elements sum to 1 (p=1), or its vectors have p-norm 1.

    Args:
        rtol: allowed deviation from 1; 4 sqrt(n) machine epsilons of the dtype by default.

    Raises:
        NumericalError: as `assert_finite`.
        UsageError: `x` is complex, integer or not strided.

    >>> import torch
    >>> assert_normalized(torch.tensor([0.25, 0.75]))
    tensor([0.2500, 0.7500])
    """
    if not _enabled or torch.compiler.is_compiling():
        return x
    require_real(x, "assert_normalized")
    values = x.detach().to(torch.float64 if x.device.type != "mps" else torch.float32)
    tolerance = 4 * max(values.shape[dim] if values.dim() else 1, 1) ** 0.5 * torch.finfo(x.dtype).eps if rtol is None else rtol
    if p == 1.0:
        total = values.sum(dim)
        bad = ~((total - 1).abs() <= tolerance) | (values < 0).any(dim)
    else:
        total = torch.linalg.vector_norm(values, p, dim)
        bad = ~((total - 1).abs() <= tolerance)
    if bool(bad.any()):
        worst = total.flatten()[bad.flatten().nonzero()[0]].item()
        raise NumericalError(
            f"{name} is not normalised along dim {dim}: {summarise(x)} on {x.device}, {int(bad.sum())} rows, first at {_first(bad)}: {worst:.6g}"
        )
    return x


def _first(bad: Tensor) -> tuple[int, ...]:
    return tuple(bad.nonzero()[0].tolist())
