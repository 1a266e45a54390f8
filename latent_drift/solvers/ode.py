"""Ordinary differential equations dz/dt = f(z, t): explicit Euler, and torchdiffeq's methods behind `method=`."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from latent_drift.errors import MissingExtraError, UsageError
from latent_drift.numerics.bounds import soft_clamp
from latent_drift.numerics.limits import largest_square_root

VectorField = Callable[[Tensor, Tensor], Tensor]
"""f(z, t): a state (B, D) and a time () to the derivative (B, D)."""


class ODE(nn.Module, ABC):
    """A vector field as a module: subclasses define `drift`, and calling the module calls it."""

    @abstractmethod
    def drift(self, z: Tensor, t: Tensor, *args: Any) -> Tensor:
        """dz/dt at state `z` (B, D) and time `t` of shape (), (1, 1) or (B, 1)."""

    def forward(self, z: Tensor, t: Tensor, *args: Any) -> Tensor:
        return self.drift(z, t, *args)


def solve_ode(
    ode: VectorField | ODE,
    z: Tensor,
    ts: float,
    tf: float,
    n_steps: SupportsIndex,
    *,
    method: str = "euler",
    adjoint: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> Tensor:
    """The states at n_steps + 1 equally spaced times from `ts` to `tf`, (n_steps + 1, *z.shape), `z` first.

    Args:
        ode: f(z, t), a module or a function; `t` comes as a 0-d tensor of z's dtype.
        z: the initial state, (B, D), real floating.
        ts, tf: finite times; tf < ts integrates backward.
        n_steps: at least 0 (0 returns `z` alone).
        method: "euler", or any method of torchdiffeq ("dopri5", "rk4", "midpoint", ...), which then reports the
            states at the same times.
        adjoint: gradients by the adjoint equation in constant memory; torchdiffeq's methods only, `ode` a module.
        rtol, atol: relative and absolute tolerance of adaptive methods.

    Raises:
        UsageError: an argument outside what is said above.
        MissingExtraError: a method of torchdiffeq without torchdiffeq.

    *Numerics*: Euler is of first order in the step and stable only for |1 + dt lambda| <= 1. Beyond that it grows
    geometrically; a single increment is therefore limited to sqrt(finfo.max) in magnitude (1.8e19 in float32, 255 in
    float16), where growth becomes linear, so that neither states nor gradients overflow; float16 states beyond 32,497 are pressed
    below 64,994 besides. Up to there, results are bitwise those of z + f(z, t) * dt. A drift that is NaN stays NaN.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise UsageError(f"solve_ode: z must be a real floating tensor; got {z.dtype if isinstance(z, Tensor) else type(z).__name__}")
    steps = -1 if isinstance(n_steps, bool) or not hasattr(n_steps, "__index__") else operator.index(n_steps)
    if steps < 0:
        raise UsageError(f"solve_ode: n_steps must be an integer of at least 0; got {n_steps!r}")
    start, end = float(ts), float(tf)
    if not (math.isfinite(start) and math.isfinite(end)):
        raise UsageError(f"solve_ode: ts and tf must be finite; got {start} and {end}")
    if steps == 0:
        return z.unsqueeze(0)
    if method != "euler":
        return _torchdiffeq(ode, z, start, end, steps, method, adjoint, rtol, atol)
    if adjoint:
        raise UsageError("solve_ode: adjoint=True needs a method of torchdiffeq, e.g. method='rk4'; explicit Euler keeps its graph")
    dt = (end - start) / steps
    path = [z]
    for i in range(steps):
        t = torch.full((), start + i * dt, dtype=z.dtype, device=z.device)
        z = _in_range(z + limited_increment(ode(z, t) * dt))
        path.append(z)
    return torch.stack(path)


def _in_range(z: Tensor) -> Tensor:
    """The state itself, but in float16, where 257 of the largest increments add up to Inf: there pressed below 65,504 - 2 * 255."""
    if z.dtype != torch.float16:
        return z
    limit = torch.finfo(z.dtype).max - 2.0 * largest_square_root(z.dtype)
    return soft_clamp(z, -limit, limit, margin=0.5 * limit)


def limited_increment(increment: Tensor) -> Tensor:
    """`increment` where its magnitude is at most sqrt(finfo.max), else of that magnitude, its gradient scaled alike.

    An infinite increment has that magnitude too, and no gradient; NaN stays NaN.
    """
    limit = largest_square_root(increment.dtype)
    magnitude = increment.detach().abs()
    scaled = torch.where(magnitude > limit, increment * (limit / magnitude), increment)
    return torch.where(magnitude.isinf(), increment.detach().clamp(-limit, limit), scaled)


def _torchdiffeq(
    ode: VectorField | ODE, z: Tensor, start: float, end: float, n_steps: int, method: str, adjoint: bool, rtol: float, atol: float
) -> Tensor:
    try:
        import torchdiffeq
        from torchdiffeq._impl.odeint import SOLVERS
    except ImportError as error:
        raise MissingExtraError(f"solve_ode(method={method!r})", "torchdiffeq", "solvers") from error
    if method not in SOLVERS:
        raise UsageError(f"solve_ode: method must be 'euler' or one of torchdiffeq's {', '.join(sorted(SOLVERS))}; got {method!r}")
    if start == end:
        return z.unsqueeze(0).expand(n_steps + 1, *z.shape)
    times = torch.linspace(start, end, n_steps + 1, dtype=torch.float64).to(z.device, z.dtype)
    if not bool((times[1:] != times[:-1]).all()):
        raise UsageError(f"solve_ode: {n_steps} steps from {start} to {end} are not distinct times in {z.dtype}; use float32 or fewer steps")
    if not adjoint:
        path: Tensor = torchdiffeq.odeint(lambda t, y: ode(y, t), z, times, rtol=rtol, atol=atol, method=method)
        return path
    if not isinstance(ode, nn.Module):
        raise UsageError("solve_ode: adjoint=True needs ode to be a module, whose parameters get the gradient; got a function")
    path = torchdiffeq.odeint_adjoint(_TimeFirst(ode), z, times, rtol=rtol, atol=atol, method=method)
    return path


class _TimeFirst(nn.Module):
    """f(z, t) with the arguments in torchdiffeq's order."""

    def __init__(self, ode: nn.Module) -> None:
        super().__init__()
        self.ode = ode

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        dz: Tensor = self.ode(z, t)
        return dz
