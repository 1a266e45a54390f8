"""The normality tests: values, derivatives, dtypes, degenerate samples, and what the published form did wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.models.goodness_of_fit import (
    EppsPulleyCF,
    FastEppsPulley,
    SlicingUnivariateTest,
    UnivariateTest,
    latent_normality_test,
)
from tests.benchmarks.ode_legacy import NaiveSlicing, naive_epps_pulley, trapezoid_grid

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def quantile_sample(size: int, shift: float = 0.0) -> Tensor:
    """A sample of N(shift, 1) without noise, (size, 1), float64."""
    return torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(size, dtype=torch.float64) + 0.5) / size).unsqueeze(-1) + shift


# --- the statistic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 3), (2, 40, 3), (2, 3, 10, 4), (1, 1)])
@pytest.mark.parametrize(("t_max", "n_points"), [(3.0, 17), (5.0, 8), (1.0, 2)])
def test_statistic_equals_the_formula(shape: tuple[int, ...], t_max: float, n_points: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 1.7 + 0.3
    test = FastEppsPulley(t_max, n_points).double()
    t, weights = trapezoid_grid(t_max, n_points, torch.float64)
    torch.testing.assert_close(test(x), naive_epps_pulley(x, t, weights), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1000.0])
def test_float32_value_and_gradient_agree_with_float64(scale: float) -> None:
    torch.manual_seed(1)
    x = (torch.randn(500, 8) * scale).requires_grad_()
    wide = x.detach().double().requires_grad_()
    t, weights = (v.double() for v in trapezoid_grid())
    expected = naive_epps_pulley(wide, t, weights)
    value = FastEppsPulley()(x)
    # an angle of 3 * scale has an absolute error of half an ulp of itself
    tolerance = 1e-5 * max(1.0, scale / 100)
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=500 * tolerance)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=tolerance * 10)


def test_loss_and_gradient_at_training_size_agree_to_1e_5() -> None:
    torch.manual_seed(2)
    z = torch.randn(8576, 16) * 0.8 + 0.2
    fast, naive = SlicingUnivariateTest(FastEppsPulley(), 32, legacy_compat=True), NaiveSlicing(32)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    a, b = fast(ours), naive(theirs)
    a.backward()
    b.backward()
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradcheck_and_gradgradcheck(per_sample: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    statistic = FastEppsPulley(per_sample=per_sample).double()
    assert torch.autograd.gradcheck(statistic, (x,))
    assert torch.autograd.gradgradcheck(statistic, (x,))
    sliced = SlicingUnivariateTest(statistic, 5).eval()
    far = (torch.randn(4, 3, dtype=torch.float64) * 20).requires_grad_()  # the pull takes part
    assert torch.autograd.gradcheck(sliced, (far,))
    assert torch.autograd.gradgradcheck(sliced, (far,))


def test_published_buffers_and_their_values() -> None:
    state = SlicingUnivariateTest(FastEppsPulley(), 8).state_dict()
    assert {name: tuple(v.shape) for name, v in state.items()} == {
        "global_step": (),
        "univariate_test.t": (17,),
        "univariate_test.phi": (17,),
        "univariate_test.weights": (17,),
    }
    torch.testing.assert_close(state["univariate_test.phi"], torch.exp(-0.5 * torch.linspace(0, 3, 17).square()))
    # the weights integrate the even extension of phi over [-3, 3]
    assert state["univariate_test.weights"].sum().item() == pytest.approx(math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2)), rel=1e-4)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_of_module_and_input(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sliced = latent_normality_test(16).to(dtype)
    z = torch.randn(300, 8).to(dtype).requires_grad_()
    if dtype != torch.float32:
        with pytest.raises(RuntimeError, match="dtype"):
            _ = z @ NaiveSlicing(16).directions(8)  # the negative control: float32 slices of other latents
    value = sliced(z)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert z.grad is not None
    assert z.grad.dtype == dtype
    assert z.grad.isfinite().all()
    reference = latent_normality_test(16)(z.detach().float())
    assert value.item() == pytest.approx(reference.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_statistic(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z = torch.randn(8576, 64) * 0.3
    reference = SlicingUnivariateTest(FastEppsPulley(), 16)(z).item()
    with torch.autocast("cpu", dtype=dtype):
        naive = NaiveSlicing(16)(z).item()
        value = SlicingUnivariateTest(FastEppsPulley(), 16)(z)
    assert abs(naive / reference - 1) > 1e-4  # the negative control: slices and weights in half precision
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference, rel=1e-6)


def test_a_loaded_grid_survives_half_precision() -> None:
    published = FastEppsPulley(t_max=5.0).state_dict()
    test = FastEppsPulley()
    test.load_state_dict(published)
    assert (published["phi"].half().float() - published["phi"]).abs().max() > 1e-4  # the control: what a cast would leave
    for dtype in (torch.float16, torch.bfloat16):
        test = test.to(dtype)
        assert all(torch.equal(value, published[name]) for name, value in test.state_dict().items())


def test_float16_product_with_n_overflows_in_the_published_form_only() -> None:
    z = torch.full((70_000, 2), 30.0, dtype=torch.float16)
    t, weights = (v.half() for v in trapezoid_grid())
    assert naive_epps_pulley(z, t, weights).isinf().all()  # the negative control: N alone is beyond 65504
    assert FastEppsPulley()(z).isfinite().all()


def test_empty_sample_gives_zero_with_a_graph() -> None:
    x = torch.zeros(0, 5, requires_grad=True)
    assert naive_epps_pulley(x, *trapezoid_grid()).isnan().all()  # the negative control
    for test in (FastEppsPulley(), FastEppsPulley(per_sample=True), latent_normality_test(7), latent_normality_test(7, legacy_compat=True)):
        value = test(x)
        assert value.eq(0).all()
        value.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == (0, 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("legacy_compat", [False, True])
def test_a_latent_that_is_not_finite_takes_part_in_nothing(bad: float, legacy_compat: bool) -> None:
    torch.manual_seed(0)
    clean = torch.randn(50, 4)
    spoiled = torch.cat([clean, torch.tensor([[0.0, bad, 0.0, 0.0]])]).requires_grad_()
    assert NaiveSlicing(8)(spoiled).isnan()  # the negative control
    value = latent_normality_test(8, legacy_compat=legacy_compat)(spoiled)
    torch.testing.assert_close(value, latent_normality_test(8, legacy_compat=legacy_compat)(clean))
    value.backward()
    assert spoiled.grad is not None
    assert spoiled.grad.isfinite().all()
    assert (spoiled.grad[-1] == 0).all()


def test_weight_in_a_loss_depends_on_neither_batch_nor_length() -> None:
    torch.manual_seed(0)
    z = torch.randn(100, 8) + 0.7
    published, corrected = (lambda: latent_normality_test(64, legacy_compat=True)), (lambda: latent_normality_test(64))
    many = z.repeat(40, 1)
    assert published()(many).item() == pytest.approx(40 * published()(z).item(), rel=1e-4)  # the negative control
    assert corrected()(many).item() == pytest.approx(corrected()(z).item(), rel=1e-4)


def pull(test: SlicingUnivariateTest, z: Tensor, distance: float) -> float:
    """How fast the statistic falls as the sample, moved by `distance` along the diagonal, moves back; a sample."""
    direction = torch.full((z.shape[1],), z.shape[1] ** -0.5, dtype=z.dtype)
    offset = (distance * direction).requires_grad_()
    statistic = test.eval()(z + offset)
    (gradient,) = torch.autograd.grad(statistic, offset)
    return float(gradient @ direction) / (1 if getattr(test.univariate_test, "per_sample", False) else len(z))


def test_a_sample_at_distance_ten_is_pulled_as_hard_as_one_at_distance_one() -> None:
    z = quantile_sample(1000)
    published = latent_normality_test(4, legacy_compat=True).double()
    assert pull(published, z, 10.0) < 1e-5 * pull(published, z, 1.0)  # the negative control
    corrected = latent_normality_test(4).double()
    for distance in (2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 1e3, 1e15):
        assert pull(corrected, z, distance) > 0.2 * pull(corrected, z, 1.0), distance


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_far_latents_of_many_dimensions_are_pulled_back(dim: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(1000, dim, dtype=torch.float64)
    published, corrected = latent_normality_test(256, legacy_compat=True).double(), latent_normality_test(256).double()
    near = pull(corrected, z, math.sqrt(dim))
    assert near > 0
    assert abs(pull(published, z, 1e4 * math.sqrt(dim))) < 0.1 * near  # the negative control
    for times in (2.0, 3.0, 5.0, 10.0, 100.0, 1e4, 1e15):
        assert pull(corrected, z, times * math.sqrt(dim)) > 0.2 * near, times


def test_pull_is_absent_where_the_statistic_has_a_slope() -> None:
    torch.manual_seed(0)
    z = torch.randn(2000, 16) * 2.0 + 0.5
    plain, corrected = SlicingUnivariateTest(FastEppsPulley(), 32, legacy_compat=True), SlicingUnivariateTest(FastEppsPulley(), 32)
    assert plain(z).item() == corrected(z).item()


# --- slices --------------------------------------------------------------------------------------------------------


def test_directions_are_those_of_the_seed_and_of_unit_length() -> None:
    sliced = SlicingUnivariateTest(FastEppsPulley(), 12)
    sliced.global_step.fill_(41)
    directions = sliced.directions(torch.zeros(3, 5))
    naive = NaiveSlicing(12)
    naive.global_step.fill_(41)
    torch.testing.assert_close(directions, naive.directions(5))
    wide = sliced.directions(torch.zeros(3, 5, dtype=torch.float64))
    torch.testing.assert_close(wide.norm(dim=0), torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-15)


def test_global_step_advances_once_a_call_in_training_only() -> None:
    z = torch.randn(10, 3)
    sliced, published = latent_normality_test(4), latent_normality_test(4, legacy_compat=True)
    for test in (sliced, published):
        test.train()(z)
        test.eval()(z)
        test(z)
    assert published.global_step.item() == 3  # the negative control
    assert sliced.global_step.item() == 1


def test_evaluation_repeats_and_training_moves_on() -> None:
    torch.manual_seed(0)
    z = torch.randn(30, 6) + 0.4
    sliced = latent_normality_test(4)
    assert sliced.eval()(z).item() == sliced(z).item()
    assert sliced.train()(z).item() != sliced(z).item()


@pytest.mark.parametrize(("reduction", "shape"), [("mean", ()), ("sum", ()), (None, (2, 6))])
def test_reductions(reduction: str | None, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 20, 3)
    value = SlicingUnivariateTest(FastEppsPulley(), 6, reduction=reduction)(x)
    assert value.shape == shape
    all_of_them = SlicingUnivariateTest(FastEppsPulley(), 6, reduction=None)(x)
    expected = all_of_them if reduction is None else getattr(all_of_them, reduction)()
    torch.testing.assert_close(value, expected)


def test_statistics_below_the_clip_value_count_as_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    raw = SlicingUnivariateTest(FastEppsPulley(), 50, reduction=None)(x)
    threshold = raw.median().item()
    clipped = SlicingUnivariateTest(FastEppsPulley(), 50, reduction=None, clip_value=threshold)(x)
    torch.testing.assert_close(clipped, torch.where(raw < threshold, torch.zeros_like(raw), raw))
    assert 0 < (clipped == 0).sum() < 50


def test_compiles_whole() -> None:
    sliced = latent_normality_test(8).eval()
    compiled = torch.compile(sliced, fullgraph=True, backend="aot_eager")
    z = torch.randn(20, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(sliced(z), z)
    (gradient,) = torch.autograd.grad(compiled(z), z)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: FastEppsPulley(t_max=0.0), "t_max"),
        (lambda: FastEppsPulley(n_points=1), "n_points"),
        (lambda: FastEppsPulley(integration="simpson"), "integration"),
        (lambda: EppsPulleyCF(t_range=(3, -3)), "t_range"),
        (lambda: EppsPulleyCF(weight_type="cauchy"), "weight_type"),
        (lambda: SlicingUnivariateTest(FastEppsPulley(), 0), "num_slices"),
        (lambda: SlicingUnivariateTest(FastEppsPulley(), 3, reduction="max"), "reduction"),
        (lambda: SlicingUnivariateTest(FastEppsPulley(), 3, sampler="sobol"), "sampler"),
        (lambda: FastEppsPulley()(torch.zeros(3)), "dimensions"),
        (lambda: FastEppsPulley()(torch.zeros(3, 2, dtype=torch.long)), "floating"),
    ],
)
def test_what_cannot_be_is_refused_by_name(build: object, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        build()  # type: ignore[operator]


# --- the others ----------------------------------------------------------------------------------------------------


def test_prepare_data_sorts_unless_told_that_it_is() -> None:
    x = torch.tensor([[3.0], [1.0], [2.0]])
    assert UnivariateTest().prepare_data(x).flatten().tolist() == [1.0, 2.0, 3.0]
    assert UnivariateTest(sorted=True).prepare_data(x) is x
    assert UnivariateTest().world_size == 1
    assert UnivariateTest().eps == 1e-5


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("weight_type", ["gaussian", "uniform"])
def test_characteristic_function_statistic_is_of_each_row(shape: tuple[int, ...], weight_type: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    test = EppsPulleyCF((-3, 3), 10, weight_type)
    t = torch.linspace(-3, 3, 10, dtype=torch.float64)
    rows = []
    for row in x.reshape(-1, 7):
        empirical = torch.stack([torch.exp(1j * point * row).mean() for point in t])
        weight = torch.exp(-0.5 * t.square()) if weight_type == "gaussian" else torch.ones_like(t)
        squared = (empirical - torch.exp(-0.5 * t.square())).abs().square() * weight
        rows.append(((squared[1:] + squared[:-1]) * 0.5 * (t[1] - t[0])).sum())
    torch.testing.assert_close(test(x), torch.stack(rows).reshape(shape[:-1]))
    if len(shape) == 2:
        published = torch.exp(1j * x.unsqueeze(-1) * t).mean(0)  # the negative control: a mean over the rows, not over the samples
        assert published.shape == (7, 10)
        assert not torch.allclose(published[0], test.empirical_cf(x, t)[0])


def test_characteristic_function_statistic_of_nothing_is_zero() -> None:
    x = torch.zeros(2, 0, requires_grad=True)
    value = EppsPulleyCF()(x)
    assert value.tolist() == [0.0, 0.0]
    value.sum().backward()


def test_normal_characteristic_function() -> None:
    t = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    expected = torch.exp(1j * 0.5 * t - 0.5 * 4.0 * t.square())
    torch.testing.assert_close(EppsPulleyCF().normal_cf(t, 0.5, 2.0), expected)
