import builtins
import math
import sys

import pytest
import torch

from latent_drift.errors import MissingExtraError, UsageError
from latent_drift.models.raccoon_dynamics import RaccoonDynamics
from latent_drift.solvers.sde import SDE_METHODS, TORCHSDE_METHODS, euler_maruyama_step, solve_sde
from tests.benchmarks.raccoon_legacy import plain_solve_sde
from tests.problems import SDE_PROBLEMS, measured_order

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("problem", SDE_PROBLEMS, ids=lambda p: p.name)
def test_euler_maruyama_has_its_strong_order(problem):
    generator = torch.Generator().manual_seed(0)
    paths, finest = 4000, 256
    increments = torch.randn(finest, paths, 1, dtype=torch.float64, generator=generator)
    end = increments.sum(0) * math.sqrt(1.0 / finest)
    z0 = torch.full((paths, 1), problem.z0, dtype=torch.float64)
    counts, errors = [8, 16, 32, 64, 128], []
    for count in counts:
        width = finest // count
        noise = increments.view(count, width, paths, 1).sum(1) / math.sqrt(width)
        grid = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        found = solve_sde(problem.dynamics, z0, grid, noise=noise)[:, -1]
        exact = problem.solution(1.0, end)
        errors.append((found - exact).abs().mean().item())
    assert measured_order(errors, counts) == pytest.approx(problem.euler_order, abs=0.12)


@pytest.mark.parametrize(("method", "order"), [("milstein", 1.0), ("srk", 1.5), ("heun", 1.0), ("midpoint", 1.0)])
def test_torchsde_methods_have_their_strong_order(method, order):
    torchsde = pytest.importorskip("torchsde")
    problem = SDE_PROBLEMS[0]
    paths, counts, errors = 400, [4, 8, 16, 32], []
    z0 = torch.full((paths, 1), problem.z0, dtype=torch.float64)
    brownian = torchsde.BrownianInterval(0.0, 1.0, (paths, 1), dtype=torch.float64, entropy=1, levy_area_approximation="space-time")
    for count in counts:
        grid = torch.tensor([0.0, 1.0], dtype=torch.float64)
        found = solve_sde(problem.dynamics, z0, grid, method=method, substeps=count, noise=brownian)[:, -1]
        errors.append((found - problem.solution(1.0, brownian(0.0, 1.0))).abs().mean().item())
    assert measured_order(errors, counts) > order - 0.25


def test_stratonovich_method_without_the_correction_solves_another_equation():
    torchsde = pytest.importorskip("torchsde")
    problem = SDE_PROBLEMS[0]
    z0 = torch.full((300, 1), problem.z0, dtype=torch.float64)
    brownian = torchsde.BrownianInterval(0.0, 1.0, (300, 1), dtype=torch.float64, entropy=1)
    exact = problem.solution(1.0, brownian(0.0, 1.0))

    class Naive(torch.nn.Module):
        noise_type, sde_type = "diagonal", "stratonovich"

        def f(self, t, z):
            return problem.dynamics(z, t.expand(300, 1))[0]

        def g(self, t, z):
            return problem.dynamics(z, t.expand(300, 1))[1]

    grid = torch.tensor([0.0, 1.0], dtype=torch.float64)
    naive = torchsde.sdeint(Naive(), z0, grid, bm=brownian, method="midpoint", dt=1 / 64)[-1]
    ours = solve_sde(problem.dynamics, z0, grid, method="midpoint", substeps=64, noise=brownian)[:, -1]
    assert (ours - exact).abs().mean() < 0.05 * (naive - exact).abs().mean()


@pytest.mark.parametrize("method", SDE_METHODS)
def test_every_method_gives_the_grid_and_follows_torchs_seed(method):
    torch.manual_seed(0)
    dynamics, z0 = RaccoonDynamics(3, 8), torch.randn(4, 3)
    grid = torch.tensor([0.0, 0.03, 0.1])
    paths = []
    for _ in range(2):
        torch.manual_seed(1)
        paths.append(solve_sde(dynamics, z0, grid, method=method))
    assert paths[0].shape == (4, 3, 3)
    assert torch.equal(paths[0][:, 0], z0)
    assert torch.equal(*paths)
    paths[0].sum().backward()
    assert all(p.grad is not None for p in dynamics.parameters())


def test_draws_one_normal_tensor_a_step_in_order_as_published():
    torch.manual_seed(0)
    dynamics, z0 = RaccoonDynamics(32, 64, legacy_compat=True), torch.randn(8, 32)
    grid = torch.linspace(0, 0.1, 3)
    torch.manual_seed(7)
    expected = plain_solve_sde(dynamics, z0, grid)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    found = solve_sde(dynamics, z0, grid)
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_decreasing_grid_is_refused_where_the_published_form_gives_nan():
    dynamics, z0 = RaccoonDynamics(2, 4), torch.zeros(3, 2)
    grid = torch.tensor([0.1, 0.05, 0.0])
    assert torch.isnan(plain_solve_sde(dynamics, z0, grid)[:, -1]).all()
    with pytest.raises(UsageError, match=r"decrease.*position 1"):
        solve_sde(dynamics, z0, grid)
    # the audit's remedy runs backwards without noise
    assert math.sqrt(max(-0.05, 1e-8)) < 1e-3


def test_repeated_time_repeats_the_state_with_finite_gradients_of_the_grid():
    dynamics, z0 = RaccoonDynamics(2, 4), torch.zeros(3, 2)
    grid = torch.tensor([0.0, 0.1, 0.1, 0.2], requires_grad=True)
    path = solve_sde(dynamics, z0, grid)
    assert torch.equal(path[:, 1], path[:, 2])
    path.sum().backward()
    assert torch.isfinite(grid.grad).all()
    naive = torch.tensor([0.0, 0.0], requires_grad=True)
    plain_solve_sde(dynamics, z0, naive).sum().backward()
    assert not torch.isfinite(naive.grad).all()


@pytest.mark.parametrize(
    ("z0", "grid", "message"),
    [
        (torch.zeros(2, 2), torch.tensor([]), "at least one"),
        (torch.zeros(2, 2), torch.tensor(0.5), "shape"),
        (torch.zeros(2, 2), torch.tensor([0.0, math.nan]), "finite"),
        (torch.zeros(2), torch.tensor([0.0, 1.0]), "z0"),
        (torch.zeros(2, 2, dtype=torch.long), torch.tensor([0.0, 1.0]), "z0"),
    ],
)
def test_input_that_cannot_be_is_refused(z0, grid, message):
    with pytest.raises(UsageError, match=message):
        solve_sde(RaccoonDynamics(2, 4), z0, grid)


def test_one_time_gives_the_start_and_integer_or_list_grids_work():
    dynamics, z0 = RaccoonDynamics(2, 4), torch.zeros(3, 2)
    assert torch.equal(solve_sde(dynamics, z0, torch.tensor([0.3])), z0.unsqueeze(1))
    assert solve_sde(dynamics, z0, torch.arange(3)).shape == (3, 3, 2)
    assert solve_sde(dynamics, z0, [0.0, 0.1]).shape == (3, 2, 2)
    assert solve_sde(dynamics, torch.zeros(0, 2), [0.0, 0.1]).shape == (0, 2, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_solution_has_the_dtype_of_its_start(dtype):
    dynamics = RaccoonDynamics(2, 4).to(dtype)
    path = solve_sde(dynamics, torch.zeros(3, 2, dtype=dtype), torch.linspace(0, 0.1, 3))
    assert path.dtype == dtype
    assert torch.isfinite(path).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unstable_steps_saturate_where_the_plain_form_ends_in_nan(dtype):
    def stiff(z, t):  # dt times the slope is -4: each step multiplies the state by -3
        return -4.0 * z, torch.zeros_like(z)

    z0 = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    steps = 1300 if dtype == torch.float64 else 100
    grid = torch.arange(steps + 1, dtype=torch.float64)
    plain = plain_solve_sde(stiff, z0.detach(), grid.to(torch.float32).to(dtype))
    assert torch.isnan(plain[:, -1]).all()
    path = solve_sde(stiff, z0, grid)
    assert torch.isfinite(path).all()
    if dtype != torch.float16:  # whose range a gradient of 3**20 leaves
        path[:, -1].sum().backward()
        assert torch.isfinite(z0.grad).all()


def test_bound_is_the_identity_for_any_state_in_use():
    z0 = torch.tensor([[1e3, -1e6, 1e15]])
    path = solve_sde(lambda z, t: (torch.ones_like(z), torch.zeros_like(z)), z0, torch.tensor([0.0, 0.5]))
    assert torch.equal(path[:, -1], z0 + 0.5)


def test_noise_of_zeros_is_the_path_of_the_drift():
    z0 = torch.ones(2, 3)
    path = solve_sde(lambda z, t: (-z, torch.ones_like(z)), z0, torch.linspace(0, 1, 5), noise=torch.zeros(4, 2, 3))
    torch.testing.assert_close(path[:, -1], z0 * 0.75**4)
    with pytest.raises(UsageError, match=r"\(4, 2, 3\)"):
        solve_sde(lambda z, t: (-z, z), z0, torch.linspace(0, 1, 5), noise=torch.zeros(3, 2, 3))
    one = euler_maruyama_step(z0, -z0, z0, 0.25, 0.5, torch.ones(2, 3))
    torch.testing.assert_close(one, z0 * (1 - 0.25 + 0.5))


def test_unknown_method_lists_the_known_ones_and_a_missing_extra_its_command(monkeypatch):
    dynamics, z0, grid = RaccoonDynamics(2, 4), torch.zeros(3, 2), torch.linspace(0, 0.1, 3)
    with pytest.raises(UsageError, match="milstein"):
        solve_sde(dynamics, z0, grid, method="rk4")
    assert set(TORCHSDE_METHODS) < set(SDE_METHODS)
    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "torchsde", raising=False)

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "torchsde":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"latent-drift\[solvers\]"):
        solve_sde(dynamics, z0, grid, method="milstein")


def test_repeated_time_and_zero_substeps_are_refused_by_torchsde_methods():
    pytest.importorskip("torchsde")
    dynamics, z0 = RaccoonDynamics(2, 4), torch.zeros(3, 2)
    with pytest.raises(UsageError, match="increasing"):
        solve_sde(dynamics, z0, [0.0, 0.1, 0.1], method="milstein")
    with pytest.raises(UsageError, match="substeps"):
        solve_sde(dynamics, z0, [0.0, 0.1], method="milstein", substeps=0)
