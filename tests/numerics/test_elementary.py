"""Elementary functions: accuracy in ulp over each dtype's whole range, values and gradients at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.numerics import elementary
from latent_drift.numerics.limits import FLOAT_DTYPES, largest_exp_argument, smallest_reciprocal
from tests.numerics.ulp import every_number, reference, ulps

DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=lambda d: str(d).removeprefix("torch."))
INF = math.inf


def _sample(dtype: torch.dtype, low: float, high: float, count: int = 1000) -> Tensor:
    """Numbers of `dtype` in [low, high], spread over its exponents, with the edges of the interval."""
    x = every_number(dtype)
    x = x[(x >= low) & (x <= high)]
    step = max(1, len(x) // count)
    return torch.cat([x[::step], torch.linspace(max(low, -50.0), min(high, 50.0), 401, dtype=torch.float64).to(dtype)])


def _softplus(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.log1p(mpmath.exp(x)) if x < 60 else x + mpmath.exp(-x)


def _logit(p: mpmath.mpf) -> mpmath.mpf:
    return mpmath.log(p) - mpmath.log1p(-p)


# name -> (ours, its reference, reference derivative, domain, largest error in ulp: value, gradient)
ACCURACY: dict[str, tuple[Callable[[Tensor], Tensor], Callable, Callable, Callable[[torch.dtype], tuple[float, float]], float, float]] = {
    "exp": (elementary.exp, mpmath.exp, mpmath.exp, lambda d: (-largest_exp_argument(d) + 4, largest_exp_argument(d)), 1.0, 1.0),
    "log": (elementary.log, mpmath.log, lambda x: 1 / x, lambda d: (smallest_reciprocal(d), torch.finfo(d).max), 1.0, 1.0),
    "sqrt": (elementary.sqrt, mpmath.sqrt, lambda x: 0.5 / mpmath.sqrt(x), lambda d: (torch.finfo(d).tiny, torch.finfo(d).max), 1.0, 2.0),
    "sigmoid": (
        elementary.sigmoid,
        lambda x: 1 / (1 + mpmath.exp(-x)),
        lambda x: 1 / ((1 + mpmath.exp(-x)) * (1 + mpmath.exp(x))),
        lambda d: (-0.9 * largest_exp_argument(d), 0.9 * largest_exp_argument(d)),
        2.5,
        4.0,
    ),
    "softplus": (
        elementary.softplus,
        _softplus,
        lambda x: 1 / (1 + mpmath.exp(-x)),
        lambda d: (-0.9 * largest_exp_argument(d), torch.finfo(d).max),
        2.5,
        3.0,
    ),
    "logit": (elementary.logit, _logit, lambda p: 1 / (p * (1 - p)), lambda d: (smallest_reciprocal(d), 1 - torch.finfo(d).eps / 2), 2.5, 3.0),
    "expm1_minus": (
        elementary.expm1_minus,
        lambda x: mpmath.expm1(x) - x,
        mpmath.expm1,
        lambda d: (-1e4, largest_exp_argument(d) - 1),
        5.0,
        1.5,
    ),
}


@DTYPES
@pytest.mark.parametrize("name", ACCURACY)
def test_value_and_gradient_stay_within_the_stated_ulp_of_mpmath(name: str, dtype: torch.dtype) -> None:
    function, exact, derivative, domain, max_ulp, max_gradient_ulp = ACCURACY[name]
    x = _sample(dtype, *domain(dtype)).requires_grad_()
    value = function(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.dtype == dtype
    # exp(x) - 1 - x cancels twice as many digits as the exponent range has, at its small end
    digits = 700 if name == "expm1_minus" and dtype == torch.float64 else 120
    value_error = ulps(value.detach(), reference(exact, x.detach(), digits))
    gradient_error = ulps(gradient, reference(derivative, x.detach(), digits))
    assert value_error.max() <= max_ulp, f"{value_error.max()} ulp at {x[value_error.argmax()].item()!r}"
    assert gradient_error.max() <= max_gradient_ulp, f"{gradient_error.max()} ulp at {x[gradient_error.argmax()].item()!r}"


@DTYPES
@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "sigmoid", "softplus", "logit"])
def test_finite_for_every_finite_number_with_finite_gradient(name: str, dtype: torch.dtype) -> None:
    x = every_number(dtype, 50_000).requires_grad_()
    value = ACCURACY[name][0](x)
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert gradient.isfinite().all()


@DTYPES
@pytest.mark.parametrize("name", ACCURACY)
def test_nan_is_not_hidden(name: str, dtype: torch.dtype) -> None:
    assert ACCURACY[name][0](torch.tensor([math.nan, 0.5], dtype=dtype)).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", ACCURACY)
def test_differentiates_twice(name: str) -> None:
    x = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ACCURACY[name][0], x)
    assert torch.autograd.gradgradcheck(ACCURACY[name][0], x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("name", ACCURACY)
def test_forward_mode_agrees_with_reverse_mode(name: str) -> None:
    x = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64)
    _, tangent = torch.func.jvp(ACCURACY[name][0], (x,), (torch.ones_like(x),))
    assert torch.allclose(tangent, torch.func.grad(lambda v: ACCURACY[name][0](v).sum())(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ACCURACY)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(name: str, backend: str) -> None:
    torch._dynamo.reset()
    function = ACCURACY[name][0]
    x = torch.linspace(-3.0, 3.0, 9).requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    value, expected = compiled(x), function(x)
    assert torch.equal(value, expected)
    gradient, expected_gradient = (torch.autograd.grad(v.sum(), x)[0] for v in (value, expected))
    assert torch.allclose(gradient, expected_gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ACCURACY)
def test_vmap_equals_a_loop(name: str) -> None:
    function = ACCURACY[name][0]
    x = torch.linspace(-2.0, 2.0, 12).reshape(3, 4)
    assert torch.equal(torch.func.vmap(function)(x), torch.stack([function(row) for row in x]))
    per_row = torch.func.vmap(torch.func.grad(lambda row: function(row).sum()))(x)
    assert torch.equal(per_row, torch.stack([torch.func.grad(lambda row: function(row).sum())(row) for row in x]))


@pytest.mark.parametrize("name", ACCURACY)
@pytest.mark.parametrize(
    "make", [lambda: torch.empty(0, 3), lambda: torch.tensor(0.3), lambda: torch.rand(4, 6).t()[::2], lambda: torch.rand(2, 6)[:, ::3]]
)
def test_empty_scalar_and_strided_inputs_keep_their_shape(name: str, make: Callable[[], Tensor]) -> None:
    x = make()
    result = ACCURACY[name][0](x)
    assert result.shape == x.shape
    assert torch.equal(result, ACCURACY[name][0](x.contiguous()))


REFUSED = {
    "complex64": lambda: torch.ones(2, dtype=torch.complex64),
    "int64": lambda: torch.ones(2, dtype=torch.int64),
    "bool": lambda: torch.ones(2, dtype=torch.bool),
    "float8_e4m3fn": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "sparse_coo": lambda: torch.eye(2).to_sparse(),
    "list": lambda: [1.0, 2.0],
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ACCURACY)
def test_what_is_not_real_and_dense_is_refused_by_name(name: str, kind: str) -> None:
    with pytest.raises(UsageError, match=kind):
        ACCURACY[name][0](REFUSED[kind]())


# --- exp ---------------------------------------------------------------------------------------------------


@DTYPES
def test_exp_is_bounded_before_it_is_taken(dtype: torch.dtype) -> None:
    x = torch.tensor([INF, 1000.0, 0.0], dtype=dtype, requires_grad=True)
    naive = torch.exp(x).clamp(max=1e4)
    assert torch.autograd.grad(naive[1], x)[0][1].isnan()  # negative control: 0 * inf
    value = elementary.exp(x, upper=5.0)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value[:2].tolist() == [torch.exp(torch.tensor(5.0, dtype=dtype)).item()] * 2
    assert torch.equal(gradient, value.detach())  # straight through: the argument can come back


def test_exp_of_twelve_is_inf_in_float16_and_the_audits_bound_of_twenty_does_not_help() -> None:
    x = torch.tensor([12.0, 30.0], dtype=torch.float16)
    assert torch.exp(x.clamp(-20, 20)).isinf().all()
    assert elementary.exp(x, -20.0, 20.0).isfinite().all()


def test_exp_gradient_outside_can_be_zero_or_inward_only() -> None:
    x = torch.tensor([9.0, -9.0, 1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(elementary.exp(x, -5.0, 5.0, outside="zero").sum(), x)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, math.e])
    value = elementary.exp(x, -5.0, 5.0, outside="inward")
    (down,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    (up,) = torch.autograd.grad(-value.sum(), x)
    assert down.tolist() == pytest.approx([math.exp(5), 0.0, math.e])
    assert up.tolist() == pytest.approx([0.0, -math.exp(-5), -math.e])


# --- log ---------------------------------------------------------------------------------------------------


@DTYPES
def test_log_of_zero_has_its_strongest_gradient_there(dtype: torch.dtype) -> None:
    floor = 2.0**-12
    x = torch.tensor([0.0, -1.0, 2.0**-13, 0.5], dtype=dtype, requires_grad=True)
    clamped = torch.log(x.clamp(min=floor))
    assert torch.autograd.grad(clamped.sum(), x)[0][0] == 0  # negative control: the worst error teaches nothing
    (gradient,) = torch.autograd.grad(elementary.log(x, floor).sum(), x)
    assert gradient.tolist() == [4096.0, 4096.0, 4096.0, 2.0]


def test_log_adds_nothing_to_its_argument() -> None:
    x = torch.tensor([1e-7])
    assert abs(torch.log(x + 1e-7).item() - math.log(1e-7)) > 0.69  # negative control
    assert elementary.log(x, 1e-7).item() == pytest.approx(math.log(1e-7), rel=1e-7)


def test_log_lifts_a_floor_the_dtype_cannot_hold() -> None:
    x = torch.zeros(1, dtype=torch.float16)
    assert torch.log(x + 1e-8).item() == -INF  # 1e-8 is 0 in float16
    assert elementary.log(x, 1e-8).isfinite().all()


# --- division ----------------------------------------------------------------------------------------------


@DTYPES
def test_division_by_zero_of_either_sign_is_finite(dtype: torch.dtype) -> None:
    denominator = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 2.0], dtype=dtype, requires_grad=True)
    floored = torch.ones_like(denominator) / (denominator.sign() * denominator.abs().clamp(min=1e-3))
    assert not floored[0].isfinite()  # negative control: a floor times sign(0)
    result = elementary.divide(torch.ones(5, dtype=dtype), denominator, 2.0**-10)
    assert result.tolist() == [1024.0, -1024.0, 1024.0, -1024.0, 0.5]
    (gradient,) = torch.autograd.grad(result.sum(), denominator)
    assert gradient.tolist() == [0.0, 0.0, 0.0, 0.0, -0.25]


@DTYPES
def test_division_above_the_floor_is_torchs_own(dtype: torch.dtype) -> None:
    a, b = every_number(dtype, 2000, 1)[:2000], every_number(dtype, 2000, 2)[:2000]
    usable = b.abs() >= smallest_reciprocal(dtype)
    n = min(len(a), len(b))
    a, b, usable = a[:n], b[:n], usable[:n]
    assert torch.equal(elementary.divide(a, b)[usable], (a / b)[usable])
    biased = a / (b + 1e-3)
    assert not torch.equal(biased[usable], (a / b)[usable])  # negative control


def test_division_takes_numbers_and_broadcasts_and_keeps_dtype() -> None:
    x = torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16)
    assert elementary.divide(1.0, x, 0.5).tolist() == [[1.0], [2.0]]
    assert elementary.divide(x, 0.0, 0.5).dtype == torch.bfloat16
    assert elementary.divide(x, torch.ones(1, 3, dtype=torch.bfloat16)).shape == (2, 3)
    with pytest.raises(UsageError, match="denominator must be float16"):
        elementary.divide(x, torch.ones(1, dtype=torch.complex64))


def test_division_differentiates_twice() -> None:
    a = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.5, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(elementary.divide, (a, b))
    assert torch.autograd.gradgradcheck(elementary.divide, (a, b))


# --- sqrt --------------------------------------------------------------------------------------------------


@DTYPES
def test_sqrt_at_zero_has_a_finite_gradient_also_of_second_order(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -1e-3, 4.0], dtype=dtype, requires_grad=True)
    assert torch.autograd.grad(torch.sqrt(x)[0], x)[0][0].isinf()  # negative control
    value = elementary.sqrt(x, 2.0**-8)
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert value.tolist() == [0.0, 0.0, 2.0]
    assert gradient.tolist() == [16.0, 0.0, 0.25]
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.isfinite().all()


def test_sqrt_is_continuous_at_its_floor() -> None:
    floor = 2.0**-8
    x = torch.tensor([floor * (1 - 1e-6), floor])
    assert elementary.sqrt(x, floor).tolist() == pytest.approx([2.0**-4, 2.0**-4], rel=2e-6)


# --- softplus, logit ---------------------------------------------------------------------------------------


def test_softplus_keeps_the_digits_that_the_threshold_drops() -> None:
    x = torch.tensor([25.0], dtype=torch.float64)
    exact = reference(_softplus, x)
    assert ulps(torch.nn.functional.softplus(x), exact).item() > 1000  # negative control: the threshold of 20
    assert ulps(elementary.softplus(x), exact).item() <= 1


def test_softplus_scales_by_beta() -> None:
    x = torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64)
    assert torch.allclose(elementary.softplus(x, beta=2.0), torch.log1p(torch.exp(2 * x)) / 2, rtol=1e-14, atol=0)
    with pytest.raises(UsageError, match="beta must be positive"):
        elementary.softplus(x, beta=0.0)


@DTYPES
def test_logit_of_zero_and_one_is_finite(dtype: torch.dtype) -> None:
    p = torch.tensor([0.0, 1.0], dtype=dtype, requires_grad=True)
    if dtype == torch.float16:
        assert torch.log(p.clamp(1e-4, 1 - 1e-4) / (1 - p.clamp(1e-4, 1 - 1e-4)))[1].isinf()  # 1 - 1e-4 is 1 in float16
    value = elementary.logit(p, 1e-4)
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert value.isfinite().all()
    assert (gradient > 0).all()


def test_logit_near_one_half_does_not_cancel() -> None:
    p = 0.5 + torch.linspace(2.0**-20, 2.0**-8, 300)
    exact = reference(_logit, p)
    assert ulps(torch.log(p) - torch.log1p(-p), exact).max() > 100  # negative control
    assert ulps(elementary.logit(p), exact).max() <= 2


@DTYPES
def test_expm1_minus_is_never_negative_and_zero_only_at_zero_or_underflow(dtype: torch.dtype) -> None:
    x = every_number(dtype, 50_000)
    x = x[x <= largest_exp_argument(dtype)]
    assert (elementary.expm1_minus(x) >= 0).all()
    if dtype in (torch.float32, torch.float64):
        near = torch.logspace(-12, -2, 10001, dtype=torch.float64).to(dtype)
        near = torch.cat([near, -near])
        assert ((torch.exp(near) - 1 - near) < 0).any()  # negative control
        assert (elementary.expm1_minus(near[near != 0]) > 0).all()
