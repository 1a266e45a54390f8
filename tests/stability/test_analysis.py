"""Norms of linear maps, stiffness, quantisation, batch norm, precision: against exact values on small cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.errors import NumericalError, UsageError
from latent_drift.stability import (
    check_batchnorm,
    condition_number,
    jacobian_norm,
    lipschitz_bounds,
    physics_informed_report,
    precision_drift,
    quantization_report,
    solver_step_bound,
    spectral_penalty,
    spectrum,
    stiffness_report,
)
from latent_drift.stability.operators import lanczos, layer_operator

CONVOLUTIONS = {
    "padded": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6)),
    "strided": (lambda: nn.Conv2d(2, 4, 3, stride=2), (2, 7, 7)),
    "grouped": (lambda: nn.Conv1d(4, 4, 3, groups=2, padding=1), (4, 12)),
    "dilated-circular": (lambda: nn.Conv1d(2, 3, 3, dilation=2, padding=2, padding_mode="circular"), (2, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 4, stride=2), (3, 4, 4)),
}


def _matrix(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The layer without its bias as a dense matrix, column by column."""
    zero = layer(torch.zeros(1, *shape))
    basis = torch.eye(math.prod(shape)).reshape(-1, *shape)
    return (layer(basis) - zero).flatten(1).t().double().detach()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_as_linear_maps(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CONVOLUTIONS[name]
    layer = make()
    exact = torch.linalg.svdvals(_matrix(layer, shape))
    found = spectrum(layer, 4, shape, rtol=1e-6)
    assert torch.allclose(found.values, exact[:4], rtol=1e-4)
    assert ((found.values - exact[:4]).abs() <= found.errors + 1e-5 * exact[0]).all()  # the stated bound, and float32's rounding
    reshaped = torch.linalg.matrix_norm(layer.weight.detach().flatten(1).double(), 2)
    assert abs(reshaped / exact[0] - 1) > 0.02  # negative control: the kernel's own norm is another number
    assert condition_number(layer, shape) == pytest.approx((exact[0] / exact[-1]).item(), rel=1e-2) or exact[-1] < 1e-6 * exact[0]


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (1, 7), (64, 64)])
def test_spectrum_of_matrices_and_its_error_bound(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = torch.linalg.svdvals(w)
    k = min(5, len(exact))
    for found in (spectrum(w, 5, rtol=1e-2), lanczos(layer_operator(w), 5, rtol=1e-2)):
        assert ((found.values[:k] - exact[:k]).abs() <= found.errors[:k] + 1e-9).all()
    assert spectrum(w, 1, rtol=1e-10).values[0].item() == pytest.approx(exact[0].item(), rel=1e-9)
    assert condition_number(w) == pytest.approx((exact[0] / exact[-1]).item(), rel=1e-9)


def test_singular_values_that_repeat_are_told_as_often() -> None:
    twice = torch.diag(torch.tensor([3.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    assert spectrum(twice, 3).values.tolist() == pytest.approx([3.0, 3.0, 2.0])
    assert lanczos(layer_operator(twice), 3).values.tolist() == pytest.approx([3.0, 2.0, 1.0])  # negative control


def test_maps_too_large_to_be_formed() -> None:
    w = torch.randn(600, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = spectrum(w, 2, rtol=1e-8)
    assert found.values.tolist() == pytest.approx(torch.linalg.svdvals(w)[:2].tolist(), rel=1e-7)
    assert found.errors.max() > 0.0


def test_degenerate_maps() -> None:
    assert spectrum(torch.zeros(4, 4)).values.tolist() == [0.0] * 4
    rank_one = torch.outer(torch.arange(1.0, 4), torch.arange(1.0, 6))
    assert spectrum(rank_one, 3).values.tolist() == pytest.approx([math.sqrt(14 * 55), 0, 0], abs=1e-3)
    assert condition_number(torch.diag(torch.tensor([1.0, 0.0]))) == math.inf
    with pytest.raises(UsageError, match="input_shape"):
        spectrum(nn.Conv1d(1, 1, 3))
    with pytest.raises(UsageError, match="no linear map"):
        spectrum(nn.ReLU())
    with pytest.raises(UsageError, match="max_size"):
        condition_number(torch.zeros(3, 3), max_size=2)


def test_jacobian_norm_of_a_network_against_its_full_jacobian() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(4, 5)
    exact = max(torch.linalg.matrix_norm(torch.autograd.functional.jacobian(net, row), 2).item() for row in x)
    assert jacobian_norm(net, x, rtol=1e-5) == pytest.approx(exact, rel=1e-4)
    assert not any(p.grad is not None for p in net.parameters())
    with pytest.raises(UsageError, match="does not depend"):
        jacobian_norm(lambda z: z.detach(), x)


def test_lipschitz_bounds_need_a_batch_for_convolutions_only() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    product = math.prod(torch.linalg.matrix_norm(layer.weight, 2).item() for layer in (net[0], net[2]))
    bounds = lipschitz_bounds(net)
    assert bounds["upper"] == pytest.approx(product, rel=2e-3)
    assert bounds["lower"] is None
    convolution = nn.Sequential(nn.Conv2d(1, 1, 3))
    assert "batch" in lipschitz_bounds(convolution)["reason"]
    assert lipschitz_bounds(convolution, torch.randn(1, 1, 5, 5))["upper"] is not None


def test_lipschitz_bounds_enclose_the_truth() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Sequential(nn.Linear(64, 8), nn.SiLU()), nn.Linear(8, 2))
    x = torch.randn(3, 1, 4, 4)
    bounds = lipschitz_bounds(net, x)
    assert bounds["layers"]["0"] == pytest.approx(torch.linalg.matrix_norm(_matrix(net[0], (1, 4, 4)), 2).item(), rel=2e-3)
    assert bounds["lower"] <= bounds["upper"]
    a, b = torch.randn(2, 500, 1, 4, 4)
    stretch = ((net(a) - net(b)).norm(dim=1) / (a - b).flatten(1).norm(dim=1)).max()
    assert stretch <= bounds["upper"]
    assert net.training

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, v: Tensor) -> Tensor:
            return v + self.inner(v)

    assert lipschitz_bounds(Skip(), torch.randn(2, 4))["upper"] is None


def test_spectral_penalty_is_the_squared_norm_and_pulls_it_down() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Conv1d(1, 2, 3, padding=1))
    exact = torch.linalg.matrix_norm(model[0].weight, 2) ** 2 + torch.linalg.matrix_norm(_matrix(model[1], (1, 16)), 2) ** 2
    assert spectral_penalty(model, iterations=60).item() == pytest.approx(exact.item(), rel=1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        spectral_penalty(model, target=0.5).backward()
        optimizer.step()
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(0.5, rel=0.05)
    assert spectral_penalty(nn.ReLU()).item() == 0
    tied = nn.Sequential(model[0], model[0])
    assert spectral_penalty(tied).item() == pytest.approx(spectral_penalty(model[0]).item(), rel=1e-4)


# --- solvers -----------------------------------------------------------------------------------------------


def _euler(matrix: Tensor, dt: float, steps: int = 400) -> float:
    z = torch.ones(len(matrix), dtype=torch.float64)
    for _ in range(steps):
        z = z + dt * (matrix @ z)
    return z.norm().item()


def test_the_step_bound_is_two_over_lambda_on_linear_systems() -> None:
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    matrix = q @ torch.diag(torch.tensor([-1.0, -3.0, -20.0, -80.0, -100.0], dtype=torch.float64)) @ q.t()
    bound = solver_step_bound(lambda z, t: z @ matrix.t(), torch.randn(7, 5, dtype=torch.float64), 0.0)
    assert bound == pytest.approx(2 / 100, rel=2e-3)
    assert _euler(matrix, 0.98 * bound) < 1e-2
    assert _euler(matrix, 1.05 * bound) > 1e6  # negative control: explicit Euler beyond 2/lambda
    assert solver_step_bound(lambda z, t: z @ matrix.t(), torch.ones(1, 5, dtype=torch.float64), 0.0, "rk4") == pytest.approx(0.02785, rel=2e-3)
    assert solver_step_bound(lambda z, t: torch.ones_like(z), torch.ones(2, 2), 0.0) == math.inf
    assert solver_step_bound(lambda z, t: (-4.0 * z, z), torch.ones(2, 2), 0.0) == pytest.approx(0.5, rel=2e-3)  # an SDE's pair
    with pytest.raises(UsageError, match="method must be"):
        solver_step_bound(lambda z, t: z, torch.ones(1, 1), 0.0, "leapfrog")
    with pytest.raises(UsageError, match="shape of z"):
        solver_step_bound(lambda z, t: z.sum(), torch.ones(2, 2), 0.0)


def test_the_audits_drift_of_gain_two_is_within_the_bound_only_below_one() -> None:
    bound = solver_step_bound(lambda z, t: -2.0 * z, torch.ones(1, 3), 0.0)
    assert bound == pytest.approx(1.0, rel=2e-3)


def test_stiffness_report_reads_eigenvalues() -> None:
    rotation = torch.tensor([[0.0, 5.0], [-5.0, 0.0]])
    report = stiffness_report(lambda z, t: z @ rotation.t(), torch.ones(1, 2), 0.0, dt=0.01)
    assert report["euler_bound"] == 0
    assert report["stable"] is False
    assert report["oscillation"] == pytest.approx(5)
    assert _euler(rotation.double(), 0.01, 4000) > 10  # it does grow
    growing = stiffness_report(lambda z, t: 0.5 * z, torch.ones(1, 2), 0.0)
    assert growing["growth"] == pytest.approx(0.5)
    assert growing["euler_bound"] == math.inf
    assert growing["stable"] is None


# --- physics-informed losses -------------------------------------------------------------------------------


def _polynomial(x: Tensor, degree: int = 5) -> Tensor:
    return torch.stack([x**k for k in range(degree + 1)], -1)


def test_curvature_and_learning_rate_bound_are_exact_for_a_model_linear_in_its_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.jacrev(_polynomial))(x)  # d/dx of each power

    def terms() -> dict[str, Tensor]:
        residual = (slopes @ model.weight[0] + 3.0 * (_polynomial(x) @ model.weight[0])).square().mean()  # u' = -3 u
        return {"residual": residual, "boundary": (_polynomial(x[:1]) @ model.weight[0] - 1).square().mean()}

    rows = slopes + 3.0 * _polynomial(x)
    exact = {"residual": 2 * rows.t() @ rows / 40, "boundary": 2 * _polynomial(x[:1]).t() @ _polynomial(x[:1])}
    report = physics_informed_report(model, terms(), rtol=1e-6)
    for name, hessian in exact.items():
        assert report["terms"][name]["curvature"] == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6)
        assert report["terms"][name]["gradient_norm"] == pytest.approx(torch.autograd.grad(terms()[name], model.weight)[0].norm().item(), rel=1e-12)
    largest = torch.linalg.eigvalsh(sum(exact.values()))[-1].item()  # type: ignore[arg-type]
    assert report["learning_rate_bound"] == pytest.approx(2 / largest, rel=1e-6)

    def descend(lr: float) -> float:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        loss = torch.zeros(())
        for _ in range(300):
            optimizer.zero_grad()
            loss = sum(terms().values())  # type: ignore[assignment]
            loss.backward()
            optimizer.step()
        return loss.item()

    start = sum(terms().values()).item()  # type: ignore[union-attr]
    assert descend(0.98 * report["learning_rate_bound"]) < start
    assert descend(1.05 * report["learning_rate_bound"]) > 1e3 * start  # negative control: explicit Euler beyond 2/lambda


class _Field(nn.Module):
    """u(x) with u'' + k**2 u = 0 wanted inside, u(0) = 0 and u(1) = sin(k) at the ends."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def terms(self, k: float) -> dict[str, Tensor]:
        x = torch.linspace(0, 1, 32)[:, None].requires_grad_()
        u = self.net(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        ends = self.net(torch.tensor([[0.0], [1.0]]))[:, 0]
        return {"residual": (second + k * k * u).square().mean(), "boundary": (ends - torch.tensor([0.0, math.sin(k)])).square().mean()}


def test_a_stiff_equation_drowns_its_boundary_terms_and_the_weights_bring_them_back() -> None:
    torch.manual_seed(0)
    field = _Field()
    mild, stiff = (physics_informed_report(field, field.terms(k)) for k in (1.0, 15.0))
    assert stiff["imbalance"] > 100 * mild["imbalance"]
    assert "weight the terms" in stiff["advice"]
    assert stiff["learning_rate_bound"] < 1e-2 * mild["learning_rate_bound"]
    terms = field.terms(15.0)
    weighted = {name: loss * stiff["weights"][name] for name, loss in terms.items()}
    assert physics_informed_report(field, weighted)["imbalance"] < 30
    sum(weighted.values()).backward()  # type: ignore[union-attr]  # the graphs are still there
    assert all(p.grad is not None for p in field.parameters())


def test_physics_informed_report_names_terms_that_are_cut_off_opposed_or_not_finite() -> None:
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 0.5]])
    against = physics_informed_report(model, {"a": model(x).mean(), "b": -2 * model(x).mean()})
    assert against["cosines"][("a", "b")] == pytest.approx(-1)
    assert "pull against each other" in against["advice"]
    assert against["learning_rate_bound"] == math.inf  # linear: no curvature
    silent = physics_informed_report(model, {"a": model(x).mean(), "b": (0 * model(x)).mean()})
    assert silent["weights"] == {"a": 1.0, "b": 1.0}
    assert "b has no gradient" in silent["advice"]
    with pytest.raises(UsageError, match=r"'b'.*without a graph"):
        physics_informed_report(model, {"a": model(x).mean(), "b": torch.tensor(1.0)})
    with pytest.raises(NumericalError, match="'a' is nan"):
        physics_informed_report(model, {"a": model(x).mean() * math.nan})
    with pytest.raises(UsageError, match="empty"):
        physics_informed_report(model, {})


# --- quantisation, batch norm, precision --------------------------------------------------------------------


def test_quantisation_of_zero_channels_outliers_and_nan() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.ConvTranspose1d(4, 8, 3))
    with torch.no_grad():
        model[0].weight[3] = 0
        assert (model[0].weight[3] / (model[0].weight[3].abs().max() / 127)).isnan().all()  # negative control: a zero scale
        model[1].weight[0] *= 1000
        model[2].weight[0, 0] = math.nan
    rows = {row["name"]: row for row in quantization_report(model)}
    assert rows["0.weight"]["zero_channels"] == 1
    assert rows["0.weight"]["healthy"]
    assert all(math.isfinite(v) for v in rows["0.weight"].values() if isinstance(v, float))
    assert rows["1.weight"]["range_ratio"] > 500
    assert rows["1.weight"]["underflow"] > 0.5
    assert rows["2.weight"]["problems"] == ["not finite"]
    assert rows["3.weight"]["shape"] == (4, 8, 3)
    four = {row["name"]: row for row in quantization_report(model, bits=4)}
    assert 8 < four["0.weight"]["error_per_channel"] / rows["0.weight"]["error_per_channel"] < 32  # 127 / 7 levels
    with pytest.raises(UsageError, match="bits must be 8 or 4"):
        quantization_report(model, bits=2)


def test_quantisation_error_is_that_of_uniform_rounding() -> None:
    w = torch.rand(4, 100_000) * 2 - 1
    layer = nn.Linear(100_000, 4, bias=False)
    layer.weight = nn.Parameter(w)
    expected = (1 / 127) / math.sqrt(12) / math.sqrt(1 / 3)
    assert quantization_report(layer)[0]["error_per_channel"] == pytest.approx(expected, rel=0.02)


def test_batch_norm_findings() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert check_batchnorm(model, torch.randn(16, 4)) == []
    before = model[1].running_mean.clone()
    one = check_batchnorm(model, torch.randn(1, 4))
    assert [f["kind"] for f in one] == ["batch-of-one"]
    assert torch.equal(model[1].running_mean, before)
    with torch.no_grad():
        model[0].weight[1] = 0
    assert check_batchnorm(model, torch.randn(16, 4))[0]["kind"] == "constant-channel"
    model[1].running_var[0] = math.nan
    kinds = [f["kind"] for f in check_batchnorm(model)]
    assert kinds == ["nonfinite-statistics"]
    assert check_batchnorm(nn.Linear(2, 2), torch.randn(1, 2)) == []
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        nn.BatchNorm1d(3)(torch.randn(1, 3))  # what torch says instead


def _classifier() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    return model, (torch.randn(64, 8), torch.randint(3, (64,)))


def test_precision_drift_finds_the_usual_loss_itself_and_compares_layers_without_any() -> None:
    model, (inputs, labels) = _classifier()
    dtypes = [torch.bfloat16, torch.float16]
    assert precision_drift(model, (inputs, labels), dtypes) == precision_drift(model, (inputs, labels), dtypes, F.cross_entropy)
    values = model(inputs).detach() + 1
    assert precision_drift(model, (inputs, values))["float32"]["loss"] == pytest.approx(1.0, rel=1e-5)
    alone = precision_drift(model, inputs, dtypes)
    assert alone["float32"] == {"loss": None, "accuracy": None}
    assert alone["float16"]["loss"] is None
    assert alone["float16"]["loss_change"] is None
    assert len(alone["float16"]["layers"]) == 3
    with torch.no_grad():
        model[0].weight.mul_(1e7)
    assert "0 is not finite in this precision" in precision_drift(model, inputs)["float16"]["warning"]


def test_precision_drift_takes_a_model_of_two_inputs() -> None:
    report = precision_drift(nn.Bilinear(3, 4, 2), (torch.randn(5, 3), torch.randn(5, 4)))
    assert report["float32"]["loss"] is None
    assert len(report["bfloat16"]["layers"]) == 1


def test_precision_drift_names_the_layer_that_overflows_and_leaves_autocast() -> None:
    model, batch = _classifier()
    report = precision_drift(model, batch, loss_fn=F.cross_entropy)
    assert abs(report["float16"]["loss_change"]) < 0.01
    assert report["float16"]["warning"] == ""
    assert [row["name"] for row in report["bfloat16"]["layers"]]
    with torch.autocast("cpu", torch.bfloat16):
        inside = precision_drift(model, batch, loss_fn=F.cross_entropy)
        assert model(batch[0]).dtype == torch.bfloat16  # negative control: autocast is on here
    assert inside["float32"]["loss"] == report["float32"]["loss"]
    with torch.no_grad():
        model[0].weight.mul_(1e5)
        model[2].weight.mul_(1e-5)
    worse = precision_drift(model, batch, loss_fn=F.cross_entropy)
    assert worse["float16"]["nonfinite_layers"][0] == "0"
    assert "0 is not finite" in worse["float16"]["warning"]
    assert worse["bfloat16"]["warning"] == ""
    assert model[0].weight.dtype == torch.float32
    under = precision_drift(_classifier()[0], batch, (torch.bfloat16,), F.cross_entropy, autocast=True)
    assert abs(under["bfloat16"]["loss_change"]) < 0.02
