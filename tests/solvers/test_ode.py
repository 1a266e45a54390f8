"""solve_ode against closed forms: order, shapes, edges, dtypes, and what explicit Euler does when it is unstable."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latent_drift.errors import MissingExtraError, UsageError
from latent_drift.solvers.ode import ODE, solve_ode
from tests.problems import ODE_PROBLEMS, OdeProblem, measured_order

needs_torchdiffeq = pytest.mark.skipif(importlib.util.find_spec("torchdiffeq") is None, reason="the extra 'solvers' is not installed")


def naive_euler(drift, z: Tensor, ts: float, tf: float, n_steps: int) -> Tensor:  # type: ignore[no-untyped-def]
    dt = (tf - ts) / n_steps
    path = [z]
    for i in range(n_steps):
        z = z + drift(z, torch.tensor(ts + i * dt, dtype=z.dtype)) * dt
        path.append(z)
    return torch.stack(path)


class Linear(ODE):
    """dz/dt = rate z with a learnable rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def drift(self, z: Tensor, t: Tensor, *args: object) -> Tensor:
        return self.rate * z


@pytest.mark.parametrize("problem", ODE_PROBLEMS, ids=str)
def test_euler_is_of_first_order(problem: OdeProblem) -> None:
    steps = [50, 100, 200, 400]
    exact = problem.solution(problem.t1)
    errors = [(solve_ode(problem.drift, problem.z0, problem.t0, problem.t1, n)[-1] - exact).abs().max().item() for n in steps]
    assert measured_order(errors, steps) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("problem", ODE_PROBLEMS, ids=str)
def test_euler_is_bitwise_the_plain_recursion(problem: OdeProblem) -> None:
    path = solve_ode(problem.drift, problem.z0, problem.t0, problem.t1, 37)
    assert path.shape == (38, *problem.z0.shape)
    assert torch.equal(path, naive_euler(problem.drift, problem.z0, problem.t0, problem.t1, 37))


@needs_torchdiffeq
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4)])
def test_measured_order_of_methods_with_fixed_steps(method: str, order: int) -> None:
    problem = ODE_PROBLEMS[3]  # nonlinear
    steps = [8, 16, 32, 64]
    exact = problem.solution(problem.t1)
    errors = [(solve_ode(problem.drift, problem.z0, problem.t0, problem.t1, n, method=method)[-1] - exact).abs().max().item() for n in steps]
    assert measured_order(errors, steps) == pytest.approx(order, abs=0.2)


@needs_torchdiffeq
@pytest.mark.parametrize("problem", ODE_PROBLEMS, ids=str)
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_adaptive_methods_reach_their_tolerance_at_every_time(problem: OdeProblem, method: str) -> None:
    n = 7
    path = solve_ode(problem.drift, problem.z0, problem.t0, problem.t1, n, method=method, rtol=1e-8, atol=1e-9)
    exact = torch.stack([problem.solution(problem.t0 + (problem.t1 - problem.t0) * i / n) for i in range(n + 1)])
    torch.testing.assert_close(path, exact, rtol=1e-4, atol=1e-4)  # tolerances are per step


@needs_torchdiffeq
@pytest.mark.parametrize("adjoint", [False, True])
def test_gradient_of_the_rate_with_and_without_adjoint(adjoint: bool) -> None:
    ode = Linear(-0.7)
    z0 = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    solve_ode(ode, z0, 0.0, 1.5, 30, method="rk4", adjoint=adjoint)[-1].sum().backward()
    assert ode.rate.grad is not None
    assert z0.grad is not None
    factor = torch.tensor(-0.7 * 1.5, dtype=torch.float64).exp().item()
    assert ode.rate.grad.item() == pytest.approx(2.0 * 1.5 * factor, rel=1e-5)
    assert z0.grad.item() == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_time_and_states_keep_the_dtype(dtype: torch.dtype) -> None:
    seen = set()

    def drift(z: Tensor, t: Tensor) -> Tensor:
        seen.add((t.dtype, t.shape))
        return -z * t

    assert solve_ode(drift, torch.ones(2, 3, dtype=dtype), 0.0, 1.0, 5).dtype == dtype
    assert seen == {(dtype, torch.Size([]))}


@pytest.mark.parametrize("gain", [2.0, -5.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_unstable_steps_stay_finite_forward_and_backward(gain: float, dtype: torch.dtype) -> None:
    z0 = torch.ones(1, 2, dtype=dtype, requires_grad=True)
    naive = naive_euler(lambda z, t: gain * z, z0, 0.0, 100.0, 100)
    assert not naive[-1].isfinite().all()  # the negative control
    path = solve_ode(lambda z, t: gain * z, z0, 0.0, 100.0, 100)
    assert path.isfinite().all()
    path[-1].float().sum().backward()
    assert z0.grad is not None
    assert z0.grad.isfinite().all()
    assert (z0.grad != 0).all()


@pytest.mark.parametrize("field", [lambda z, t: 2 * z, lambda z, t: z * z, lambda z, t: -3 * z])
def test_many_unstable_steps_do_not_add_up_to_inf_in_float16(field: Callable[[Tensor, Tensor], Tensor]) -> None:
    z0 = torch.full((1, 2), 1.5, dtype=torch.float16, requires_grad=True)
    increments = z0.new_full((300,), 255.0).cumsum(0)
    assert increments[-1].isinf()  # the negative control: bounded increments alone
    path = solve_ode(field, z0, 0.0, 2000.0, 2000)
    assert path.isfinite().all()
    (gradient,) = torch.autograd.grad(path[-1].float().sum(), z0)
    assert gradient.isfinite().all()


def test_number_of_steps_may_be_any_integer() -> None:
    z = torch.ones(2, 3)
    expected = solve_ode(lambda z, t: -z, z, 0.0, 1.0, 4)
    assert torch.equal(solve_ode(lambda z, t: -z, z, 0.0, 1.0, np.int64(4)), expected)
    assert torch.equal(solve_ode(lambda z, t: -z, z, torch.tensor(0.0), torch.tensor(1.0), torch.tensor(4)), expected)


def test_no_step_returns_the_start_and_one_time_repeats_it() -> None:
    z0 = torch.randn(2, 3)
    assert torch.equal(solve_ode(lambda z, t: z, z0, 0.0, 1.0, 0), z0.unsqueeze(0))
    assert torch.equal(solve_ode(lambda z, t: z, z0, 1.0, 1.0, 2), z0.expand(3, 2, 3))
    assert solve_ode(lambda z, t: z, torch.zeros(0, 3), 0.0, 1.0, 4).shape == (5, 0, 3)


def test_calling_an_ode_is_its_drift_and_the_base_cannot_be_built() -> None:
    z = torch.ones(1, 2, dtype=torch.float64)
    assert torch.equal(Linear(3.0)(z, torch.tensor(0.0)), 3.0 * z)
    with pytest.raises(TypeError, match="drift"):
        ODE()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"z": torch.zeros(1, 2, dtype=torch.long)}, "z must be"),
        ({"n_steps": -1}, "n_steps"),
        ({"n_steps": 2.0}, "n_steps"),
        ({"ts": float("nan")}, "finite"),
        ({"tf": float("inf")}, "finite"),
        ({"adjoint": True}, "adjoint"),
    ],
)
def test_what_cannot_be_solved_is_refused_by_name(keywords: dict[str, object], named: str) -> None:
    arguments = {"z": torch.zeros(1, 2), "ts": 0.0, "tf": 1.0, "n_steps": 3, **keywords}
    with pytest.raises(UsageError, match=named):
        solve_ode(lambda z, t: z, **arguments)  # type: ignore[arg-type]


@needs_torchdiffeq
def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="dopri5"):
        solve_ode(lambda z, t: z, torch.zeros(1, 2), 0.0, 1.0, 3, method="leapfrog")
    with pytest.raises(UsageError, match="module"):
        solve_ode(lambda z, t: z, torch.zeros(1, 2), 0.0, 1.0, 3, method="rk4", adjoint=True)


def test_without_torchdiffeq_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-drift\[solvers\]'"):
        solve_ode(lambda z, t: z, torch.zeros(1, 2), 0.0, 1.0, 3, method="dopri5")
