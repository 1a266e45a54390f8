"""Solutions of Ito SDEs with diagonal noise on a given time grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from latent_drift.errors import MissingExtraError, UsageError
from latent_drift.numerics.bounds import soft_clamp
from latent_drift.numerics.limits import largest_square_root

Dynamics = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z (B, D), t (B, 1)) -> (drift, diffusion), both (B, D); dz = drift dt + diffusion dW, elementwise, in the Ito sense."""

TORCHSDE_METHODS: Final = {
    "milstein": "ito",
    "srk": "ito",
    "euler_heun": "stratonovich",
    "heun": "stratonovich",
    "midpoint": "stratonovich",
    "reversible_heun": "stratonovich",
}
"""Methods of torchsde and the calculus each integrates; a Stratonovich method gets the corrected drift."""

SDE_METHODS: Final = ("euler", *TORCHSDE_METHODS)


def solve_sde(
    dynamics: Dynamics,
    z0: Tensor,
    t_span: Tensor | Sequence[float],
    *,
    method: str = "euler",
    noise: Any = None,
    substeps: int = 1,
) -> Tensor:
    """The solution at every time of the grid, (B, len(t_span), D), the first being `z0`.

    Args:
        dynamics: see `Dynamics`.
        z0: (B, D), any real floating dtype; the result has it too.
        t_span: (T,), not decreasing. A repeated time repeats the state (and draws its noise all the same).
        method: "euler" (Euler-Maruyama), or one of torchsde's: "milstein", "srk", "euler_heun", "heun", "midpoint", "reversible_heun".
        noise: for "euler" standard normal numbers (T - 1, B, D) to use in place of drawn ones (zeros give the path without noise); for a
            torchsde method a Brownian motion of torchsde over the grid.
        substeps: steps of a torchsde method within the shortest interval of the grid.

    Raises:
        UsageError: a grid that decreases, is empty or not finite; shapes that do not fit; an unknown method.
        MissingExtraError: a torchsde method without torchsde.

    *Numerics*: Euler-Maruyama has strong order 1/2 (1 for a diffusion that does not depend on z) and draws one `randn_like(z)` a step,
    in order. States are pressed below the square root of the dtype's largest number (255 in float16, 1.8e19 in float32; the identity up
    to half of it), so that an unstable step (dt times the drift's slope below -2) or a growth beyond the dtype saturates and never becomes
    NaN. Reverse time is refused: it is another process, whose drift needs the score, and sqrt(-dt) is NaN. Stratonovich methods
    integrate drift - 1/2 diffusion d(diffusion)/dz (the diagonal of the exact Jacobian); "milstein" and "srk"
    reach their orders 1 and 1.5 where diffusion_i depends on z_i alone.

    *Source*: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations (1992), sections 10.2, 10.3 and 4.9.
    """
    if z0.dim() != 2 or not z0.is_floating_point():
        raise UsageError(f"solve_sde: z0 must be a real floating tensor of shape (B, D); got {tuple(z0.shape)} of {z0.dtype}")
    grid = torch.as_tensor(t_span, device=z0.device)
    if grid.dim() != 1 or grid.shape[0] == 0:
        raise UsageError(f"solve_sde: t_span must have shape (T,) with at least one time; got {tuple(grid.shape)}")
    if not grid.is_floating_point():
        grid = grid.to(torch.float32)
    if not torch.compiler.is_compiling():
        _require_forward(grid)
    if method == "euler":
        expected = (grid.shape[0] - 1, *z0.shape)
        if noise is not None and noise.shape != expected:
            raise UsageError(f"solve_sde: noise must have shape {expected}, one row a step; got {tuple(noise.shape)}")
        return _euler_maruyama(dynamics, z0, grid, noise)
    if method not in TORCHSDE_METHODS:
        raise UsageError(f"solve_sde: method must be one of {', '.join(SDE_METHODS)}; got {method!r}")
    return _torchsde(dynamics, z0, grid, method, substeps, noise)


def euler_maruyama_step(z: Tensor, drift: Tensor, diffusion: Tensor, dt: float, sqrt_dt: float, noise: Tensor) -> Tensor:
    """z + drift dt + diffusion sqrt(dt) noise, in two kernels."""
    return torch.addcmul(torch.add(z, drift, alpha=dt), diffusion, noise, value=sqrt_dt)


def _require_forward(grid: Tensor) -> None:
    times = grid.detach().tolist()
    if not all(math.isfinite(t) for t in times):
        raise UsageError(f"solve_sde: t_span must be finite; got {times}")
    for i in range(len(times) - 1):
        if times[i + 1] < times[i]:
            raise UsageError(
                f"solve_sde: t_span must not decrease; got {times[i]} before {times[i + 1]} at position {i + 1}. An SDE in reverse time is another "
                "process (its drift needs the score of the density): flip the grid, or solve forward"
            )


def _euler_maruyama(dynamics: Dynamics, z0: Tensor, grid: Tensor, noise: Tensor | None) -> Tensor:
    limit = largest_square_root(z0.dtype)
    times = grid.to(torch.promote_types(z0.dtype, torch.float32))
    steps = times[1:] - times[:-1]
    roots = _sqrt(steps)
    z = z0
    path = [z0]
    for i in range(grid.shape[0] - 1):
        t = times[i].to(z.dtype).expand(z.shape[0], 1)
        drift, diffusion = dynamics(z, t)
        increment = torch.randn_like(z) if noise is None else noise[i]
        z = (z + drift * steps[i] + diffusion * roots[i] * increment).to(z0.dtype)
        z = soft_clamp(z, -limit, limit, margin=0.5 * limit)
        path.append(z)
    return torch.stack(path, dim=1)


def _sqrt(steps: Tensor) -> Tensor:
    # sqrt has an infinite slope at the 0 of a repeated time, and 0 * inf is NaN in the backward pass.
    positive = steps > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, steps, torch.ones_like(steps))), torch.zeros_like(steps))


class _DiagonalSDE:
    """`Dynamics` as torchsde expects an SDE."""

    noise_type = "diagonal"

    def __init__(self, dynamics: Dynamics, calculus: str) -> None:
        self.dynamics = dynamics
        self.sde_type = calculus

    def f(self, t: Tensor, z: Tensor) -> Tensor:
        drift = self.dynamics(z, _column(t, z))[0]
        return drift - self._stratonovich_correction(t, z) if self.sde_type == "stratonovich" else drift

    def g(self, t: Tensor, z: Tensor) -> Tensor:
        diffusion: Tensor = self.dynamics(z, _column(t, z))[1]
        return diffusion

    def _stratonovich_correction(self, t: Tensor, z: Tensor) -> Tensor:
        """1/2 g_i dg_i/dz_i: for a diagonal matrix of diffusions only the Jacobian's diagonal enters."""
        linearised: Any = torch.func.vjp(lambda x: self.g(t, x), z)
        diffusion, pull_back = linearised
        basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        rows = torch.func.vmap(lambda direction: pull_back(direction.expand_as(z))[0])(basis)  # [i, b, k] = dg_i / dz_k
        correction: Tensor = 0.5 * diffusion * rows.diagonal(dim1=0, dim2=2)
        return correction


def _column(t: Tensor, z: Tensor) -> Tensor:
    return t.to(z.dtype).expand(z.shape[0], 1)


def _torchsde(dynamics: Dynamics, z0: Tensor, grid: Tensor, method: str, substeps: int, brownian: Any) -> Tensor:
    try:
        import torchsde
    except ImportError as error:
        raise MissingExtraError(f"solve_sde(method={method!r})", "torchsde", "solvers") from error
    if substeps < 1:
        raise UsageError(f"solve_sde: substeps must be at least 1; got {substeps}")
    if grid.shape[0] == 1 or z0.shape[0] == 0:
        return z0.unsqueeze(1).expand(-1, grid.shape[0], -1)
    grid = grid.detach().to(z0.dtype)
    shortest = float((grid[1:] - grid[:-1]).min())
    if shortest <= 0.0:
        raise UsageError(f"solve_sde: method={method!r} needs strictly increasing times; got {grid.tolist()}. Repeated times are for 'euler'")
    if isinstance(brownian, Tensor):
        raise UsageError(f"solve_sde: noise as a tensor is for method='euler'; {method!r} takes a Brownian motion of torchsde")
    brownian = brownian or torchsde.BrownianInterval(
        t0=grid[0],
        t1=grid[-1],
        size=z0.shape,
        dtype=z0.dtype,
        device=z0.device,
        entropy=int(torch.randint(2**31 - 1, ()).item()),  # from torch's generator, so that torch.manual_seed decides
        levy_area_approximation="space-time" if method == "srk" else "none",
    )
    sde = _DiagonalSDE(dynamics, TORCHSDE_METHODS[method])
    path: Tensor = torchsde.sdeint(sde, z0, grid, bm=brownian, method=method, dt=shortest / substeps)
    return path.transpose(0, 1)
