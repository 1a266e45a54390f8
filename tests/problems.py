"""Differential equations with closed-form solutions, shared by the tests of every solver.

An ODE problem gives dz/dt = f(z, t) and the solution from z0 at time t0. All are in float64 unless asked otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OdeProblem:
    """dz/dt = f(z, t), z(t0) = z0, with z(t) known.

    Attributes:
        scale: a number that the solution's magnitude does not exceed on [t0, t1], for relative errors.
    """

    name: str
    drift: Callable[[Tensor, Tensor], Tensor]
    solution: Callable[[float], Tensor]
    z0: Tensor
    t0: float
    t1: float
    scale: float = 1.0

    def __str__(self) -> str:
        return self.name


def _decay() -> OdeProblem:
    z0 = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    return OdeProblem("decay", lambda z, t: -1.5 * z, lambda t: z0 * math.exp(-1.5 * t), z0, 0.0, 1.0, 3.0)


def _rotation() -> OdeProblem:
    """Norm-preserving: dz/dt = A z with A antisymmetric."""
    rate = 2.0
    z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    turn = torch.tensor([[0.0, rate], [-rate, 0.0]], dtype=torch.float64)  # rows times this: (x, y) -> (-rate y, rate x)
    return OdeProblem(
        "rotation", lambda z, t: z @ turn, lambda t: torch.tensor([[math.cos(rate * t), math.sin(rate * t)]], dtype=torch.float64), z0, 0.0, 1.0
    )


def _forced() -> OdeProblem:
    """dz/dt = cos(t) - z, time dependent: z = (cos t + sin t) / 2 + (z0 - 1/2) exp(-t)."""
    z0 = torch.tensor([[2.0]], dtype=torch.float64)
    return OdeProblem(
        "forced",
        lambda z, t: torch.cos(t) - z,
        lambda t: torch.full_like(z0, 0.5 * (math.cos(t) + math.sin(t))) + (z0 - 0.5) * math.exp(-t),
        z0,
        0.0,
        2.0,
        2.0,
    )


def _logistic() -> OdeProblem:
    """dz/dt = z (1 - z), nonlinear: z = 1 / (1 + (1 / z0 - 1) exp(-t))."""
    z0 = torch.tensor([[0.1], [0.6]], dtype=torch.float64)
    return OdeProblem("logistic", lambda z, t: z * (1 - z), lambda t: 1 / (1 + (1 / z0 - 1) * math.exp(-t)), z0, 0.0, 3.0)


def _backward_decay() -> OdeProblem:
    z0 = torch.tensor([[1.0]], dtype=torch.float64)
    return OdeProblem("decay backward in time", lambda z, t: -z, lambda t: z0 * math.exp(1.0 - t), z0, 1.0, 0.0, math.e)


ODE_PROBLEMS = (_decay(), _rotation(), _forced(), _logistic(), _backward_decay())


def measured_order(errors: list[float], steps: list[int]) -> float:
    """The slope of log error over log step size, least squares."""
    x = torch.tensor([-math.log(n) for n in steps], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))
