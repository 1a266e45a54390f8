"""The numbers of every release that is not exempt, held against torch.finfo; the exempt one shows that the tests can fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch

from latent_drift.config import StabilityConfig, available, load
from latent_drift.config.v1 import DTYPES, DtypePrecision
from latent_drift.numerics import limits

CORRECT = [release.version for release in available() if not release.superseded]
EXEMPT = [release.version for release in available() if release.superseded]

Rule = Callable[[DtypePrecision, torch.dtype], bool]


def _is_normal(value: float, dtype: torch.dtype) -> bool:
    rounded = torch.tensor(value, dtype=dtype).item()
    return abs(rounded) >= torch.finfo(dtype).smallest_normal


def _is_exact(value: float, dtype: torch.dtype) -> bool:
    return torch.tensor(value, dtype=torch.float64).to(dtype).double().item() == value


def _is_finite(x: torch.Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _next(value: float, dtype: torch.dtype) -> torch.Tensor:
    """The next number of the dtype away from zero (torch.nextafter knows no float16)."""
    bits = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    return (torch.tensor(value, dtype=dtype).view(bits) + 1).view(dtype)


RULES: dict[str, tuple[str, Rule]] = {
    "the epsilon is a normal number of the dtype": ("division_eps", lambda p, d: _is_exact(p.division_eps, d) and _is_normal(p.division_eps, d)),
    "the epsilon has a finite reciprocal": ("division_eps", lambda p, d: _is_finite(1 / torch.tensor(p.division_eps, dtype=d))),
    "the epsilon is no larger than it must be": (
        "division_eps",
        # a power of two below, either the number is subnormal or the derivative of 1/x there, -1/x^2, overflows
        lambda p, d: not _is_normal(p.division_eps / 2, d) or not _is_finite(1 / torch.tensor(p.division_eps / 2, dtype=d).square()),
    ),
    "the log floor is the smallest normal number": ("log_floor", lambda p, d: p.log_floor == torch.finfo(d).smallest_normal),
    "the log floor has a finite reciprocal": ("log_floor", lambda p, d: _is_finite(1 / torch.tensor(p.log_floor, dtype=d))),
    "exp is finite at its bound": ("exp_max", lambda p, d: _is_finite(torch.tensor(p.exp_max, dtype=d).exp())),
    "the exp bound is the dtype's own, rounded toward zero": ("exp_max", lambda p, d: p.exp_max == limits.largest_exp_argument(d)),
    "exp overflows within 2 ulp beyond its bound": (
        "exp_max",
        lambda p, d: not _is_finite(_next(_next(p.exp_max, d).item(), d).exp()),
    ),
    "exp is normal at its lower bound": (
        "exp_min",
        lambda p, d: (
            _is_exact(p.exp_min, d)
            and _is_normal(math.exp(p.exp_min), d)
            and not math.exp(_next(p.exp_min, d).item()) >= torch.finfo(d).smallest_normal
        ),
    ),
    "the mask value is the lowest finite number": ("mask_value", lambda p, d: p.mask_value == torch.finfo(d).min == limits.lowest(d)),
    "the variance and its reciprocal are finite and not 0": (
        "log_variance_max",
        lambda p, d: all(
            _is_finite(x) and bool((x > 0).all())
            for sign in (1, -1)
            for x in [torch.exp(sign * torch.tensor([p.log_variance_min, p.log_variance_max], dtype=d))]
        ),
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", CORRECT)
def test_each_bound_follows_from_its_dtype(version: str, dtype: str, rule: str) -> None:
    _, holds = RULES[rule]
    assert holds(load(version).precision[dtype], getattr(torch, dtype))


def test_the_published_values_break_the_rules_and_each_break_is_marked() -> None:
    assert EXEMPT == ["0.9.0"]
    config, notes = load("0.9.0"), available()[0].notes
    broken = {(dtype, field) for dtype in DTYPES for field, holds in RULES.values() if not holds(config.precision[dtype], getattr(torch, dtype))}
    assert {("float16", field) for field in ("division_eps", "log_floor", "exp_max", "mask_value")} <= broken
    for dtype, field in broken:
        assert notes[f"precision.{dtype}.{field}"].startswith("deprecated: "), (dtype, field)


def test_what_the_report_recommends_for_float16_overflows() -> None:
    half = load("0.9.0").precision["float16"]
    assert torch.isinf(1 / torch.tensor(half.division_eps, dtype=torch.float16))
    assert torch.isinf(torch.tensor(12.0, dtype=torch.float16).exp())
    with pytest.raises(RuntimeError, match="overflow"):
        torch.zeros(1, dtype=torch.float16).masked_fill(torch.tensor([True]), half.mask_value)


def test_the_bound_rounded_to_nearest_would_overflow() -> None:
    """Why bounds are rounded toward zero: the naive bound log(finfo.max) is inf in float16 and float32."""
    for dtype in (torch.float16, torch.float32):
        naive = torch.tensor(math.log(torch.finfo(dtype).max), dtype=dtype)
        assert torch.isinf(naive.exp())


@pytest.mark.parametrize("version", CORRECT)
def test_a_fully_masked_row_of_scores_stays_finite_at_the_mask_value(version: str) -> None:
    for dtype in DTYPES:
        scores = torch.full((1, 3), load(version).precision[dtype].mask_value, dtype=getattr(torch, dtype))
        assert torch.allclose(scores.softmax(-1).double(), torch.full((1, 3), 1 / 3, dtype=torch.float64), rtol=4e-3)


def _second_moment_gain(function: Callable[[mpmath.mpf], mpmath.mpf]) -> float:
    """1 / sqrt(E[f(x)^2]) for standard normal x, by quadrature."""
    with mpmath.workdps(30):
        moment = mpmath.quad(lambda x: function(x) ** 2 * mpmath.npdf(x), [-20, -5, 0, 5, 20])
        return float(1 / mpmath.sqrt(moment))


@pytest.mark.parametrize("version", CORRECT)
def test_gains_keep_the_second_moment(version: str) -> None:
    gains = load(version).initialization
    assert gains.relu == pytest.approx(_second_moment_gain(lambda x: max(x, mpmath.mpf(0))), rel=1e-15)
    assert gains.silu == pytest.approx(_second_moment_gain(lambda x: x / (1 + mpmath.exp(-x))), rel=1e-15)
    assert gains.tanh == torch.nn.init.calculate_gain("tanh")


@pytest.mark.parametrize("version", CORRECT)
def test_latent_bounds_are_one_bound_in_three_units(version: str) -> None:
    config: StabilityConfig = load(version)
    wide = config.precision["float32"]
    assert config.latent.log_std_min == wide.log_variance_min / 2
    assert config.latent.log_std_max == wide.log_variance_max / 2
    assert config.latent.scale_min == math.exp(config.latent.log_std_min)
    assert config.latent.scale_max == math.exp(config.latent.log_std_max)


@pytest.mark.parametrize("version", CORRECT)
def test_the_first_loss_scale_leaves_float16_room(version: str) -> None:
    assert load(version).amp.init_scale == 2.0**10
    assert math.isfinite((torch.tensor(60.0, dtype=torch.float16) * load(version).amp.init_scale).item())
    assert torch.isinf(torch.tensor(1.0, dtype=torch.float16) * load("0.9.0").amp.init_scale)


@pytest.mark.parametrize("version", CORRECT)
def test_operations_kept_in_float32_are_names_that_torch_has(version: str) -> None:
    operations = load(version).amp.float32_ops
    assert len(set(operations)) == len(operations)
    assert list(operations) == sorted(operations)
    for operation in operations:
        assert any(hasattr(owner, operation) for owner in (torch, torch.nn.functional, torch.linalg)), operation
