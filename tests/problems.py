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


@dataclass(frozen=True)
class SdeProblem:
    """The Ito equation dz = f(z, t) dt + g(z, t) dW from z0 at time 0, one-dimensional, with z a function of t and W(t).

    Attributes:
        dynamics: (z, t) to (f, g).
        solution: (t, W(t)) to z(t).
        euler_order: strong order of Euler-Maruyama on it.
    """

    name: str
    dynamics: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    solution: Callable[[float, Tensor], Tensor]
    z0: float
    euler_order: float


def _geometric() -> SdeProblem:
    """dz = a z dt + b z dW: z = z0 exp((a - b^2 / 2) t + b W)."""
    a, b, z0 = 0.5, 0.8, 1.0
    return SdeProblem("geometric", lambda z, t: (a * z, b * z), lambda t, w: z0 * torch.exp((a - 0.5 * b * b) * t + b * w), z0, 0.5)


def _arctangent() -> SdeProblem:
    """z = arctan(b W + tan z0): by Ito's formula dz = -b^2 sin z cos^3 z dt + b cos^2 z dW."""
    b, z0 = 1.5, 0.5
    return SdeProblem(
        "arctangent",
        lambda z, t: (-b * b * z.sin() * z.cos() ** 3, b * z.cos() ** 2),
        lambda t, w: torch.atan(b * w + math.tan(z0)),
        z0,
        0.5,
    )


def _additive() -> SdeProblem:
    """dz = cos(t) dt + b dW: z = z0 + sin t + b W."""
    b, z0 = 0.7, 0.3
    return SdeProblem(
        "additive", lambda z, t: (torch.cos(t) * torch.ones_like(z), torch.full_like(z, b)), lambda t, w: z0 + math.sin(t) + b * w, z0, 1.0
    )


SDE_PROBLEMS = (_geometric(), _arctangent(), _additive())


def measured_order(errors: list[float], steps: list[int]) -> float:
    """The slope of log error over log step size, least squares."""
    x = torch.tensor([-math.log(n) for n in steps], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))
