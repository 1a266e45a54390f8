"""How large a step an explicit solver may take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.stability.operators import lanczos, linear_operator

Drift = Callable[[Tensor, Tensor], Tensor]

# Length of each method's stability interval on the negative real axis (Hairer and Wanner, Solving ODEs II, table IV.2.1; dopri5: figure IV.2.1).
REAL_STABILITY = {"euler": 2.0, "midpoint": 2.0, "heun": 2.0, "rk4": 2.785, "dopri5": 3.3}


def _call(drift: Any, z: Tensor, t: Tensor) -> Tensor:
    drift = getattr(drift, "drift", drift)  # an ODE module: its drift, not its solver step
    result = drift(z, t)
    value: Tensor = result[0] if isinstance(result, tuple) else result  # an SDE gives (drift, diffusion)
    return value


def solver_step_bound(drift: Drift, z: Tensor, t: Tensor | float, method: str = "euler", rtol: float = 1e-3) -> float:
    """The largest step for which the method cannot blow up along any direction that decays: interval / ||J||, J the drift's Jacobian in z.

    Args:
        drift: (z, t) -> dz/dt, or -> (drift, diffusion); or an object with such a method `drift`.
        z: states (batch, latent), the ones to be expected; the bound is the smallest over the batch.
        t: time, handed to the drift.
        method: "euler", "midpoint", "heun", "rk4" or "dopri5".
        rtol: accuracy of the norm.

    Returns:
        The step in the unit of t; inf for a drift that does not depend on z.

    Raises:
        UsageError: an unknown method, or the drift does not return the shape of z.

    *Numerics*: exact for linear systems with a symmetric matrix: explicit Euler on z' = -lambda z decays for dt < 2/lambda and explodes
    beyond. For others the norm is at least the largest |eigenvalue|; oscillation without damping is unstable under Euler at any step
    (`stiffness_report` says so).

    >>> import torch
    >>> round(solver_step_bound(lambda z, t: -50.0 * z, torch.ones(3, 2), 0.0), 4)
    0.04
    """
    if method not in REAL_STABILITY:
        raise UsageError(f"solver_step_bound: method must be one of {', '.join(REAL_STABILITY)}; got {method!r}")
    time = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    value = _call(drift, z, time)
    if value.shape != z.shape:
        raise UsageError(f"solver_step_bound: the drift must have the shape of z, {tuple(z.shape)}; got {tuple(value.shape)}")
    if not _call(drift, z.detach().requires_grad_(), time).requires_grad:
        return math.inf
    found = lanczos(linear_operator(lambda x: _call(drift, x, time), z), 1, rtol)
    norm = float(found.values[0] + found.errors[0])
    return REAL_STABILITY[method] / norm if norm > 0 else math.inf


def stiffness_report(drift: Drift, z: Tensor, t: Tensor | float, dt: float | None = None, samples: int = 8) -> dict[str, Any]:
    """Eigenvalues of the drift's Jacobian at a few states, and what they mean for explicit solvers.

    Args:
        drift, z, t: as `solver_step_bound`; the drift treats rows independently.
        dt: the step in use, if any.
        samples: rows of `z` looked at.

    Returns:
        `norm` (largest singular value), `growth` (largest real part: positive means the solution itself grows), `fastest` (largest |eigenvalue|),
        `stiffness` (fastest over slowest decay), `oscillation` (largest |imaginary part|), `step_bounds` (method -> interval / norm),
        `euler_bound` (from the eigenvalues, min of -2 Re / |.|**2 over decaying ones; 0 if one oscillates undamped), `stable` (whether dt
        is within it; None without dt), `advice`.

    *Numerics*: the Jacobian of each sample is formed, in float64: meant for latent sizes up to a few hundred.

    >>> import torch
    >>> report = stiffness_report(lambda z, t: z @ torch.diag(torch.tensor([-1.0, -1000.0])), torch.ones(1, 2), 0.0, dt=0.01)
    >>> report["stiffness"], report["stable"]
    (1000.0, False)
    """
    time = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    rows = z.detach()[:samples]
    values: list[Tensor] = []
    norm = 0.0
    for row in rows:
        jacobian = torch.func.jacrev(lambda x: _call(drift, x[None], time)[0])(row).double()
        values.append(torch.linalg.eigvals(jacobian))
        norm = max(norm, float(torch.linalg.matrix_norm(jacobian, 2)))
    eigenvalues = torch.cat(values) if values else torch.zeros(0, dtype=torch.complex128)
    real, size = eigenvalues.real, eigenvalues.abs()
    fastest = float(size.max()) if size.numel() else 0.0
    rounding = 1e-6 * max(fastest, 1e-300)
    decaying = real < -rounding
    undamped = (real.abs() <= rounding) & (eigenvalues.imag.abs() > rounding)
    bound = float((-2 * real[decaying] / size[decaying].square()).min()) if bool(decaying.any()) else math.inf
    if bool(undamped.any()):
        bound = 0.0
    slowest = float(-real[decaying].max()) if bool(decaying.any()) else math.nan
    stiffness = float(-real.min()) / slowest if slowest > 0 else 1.0
    stable = None if dt is None else abs(dt) <= bound
    if stable is False:
        advice = f"dt={dt:g} is beyond {bound:.4g}: take smaller steps, an adaptive method, or an implicit one"
    elif bound == 0.0:
        advice = "an undamped oscillation grows under explicit Euler at any step: use heun, rk4 or dopri5"
    elif stiffness > 1e3:
        advice = "stiff: an implicit or exponential method will need far fewer steps"
    else:
        advice = "explicit methods are fine within the bounds"
    return {
        "norm": norm,
        "growth": float(real.max()) if real.numel() else 0.0,
        "fastest": fastest,
        "stiffness": stiffness,
        "oscillation": float(eigenvalues.imag.abs().max()) if size.numel() else 0.0,
        "step_bounds": {name: (interval / norm if norm else math.inf) for name, interval in REAL_STABILITY.items()},
        "euler_bound": bound,
        "stable": stable,
        "advice": advice,
    }
