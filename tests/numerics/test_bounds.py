"""Bounds whose gradient returns."""

from __future__ import annotations

import math

import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.numerics.bounds import attach_gradient, clamp, soft_clamp
from tests.numerics.test_elementary import DTYPES


def _descend(bound: object, start: float, target: float, steps: int = 300) -> float:
    """Gradient descent on (bound(s) - target)^2 from `start`; where it ends."""
    s = torch.tensor(start, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad((bound(s) - target) ** 2, s)  # type: ignore[operator]
        with torch.no_grad():
            s -= 0.1 * gradient
    return s.item()


def test_a_value_outside_a_plain_clamp_is_stuck_and_ours_return() -> None:
    assert _descend(lambda s: s.clamp(-10, 2), 4.0, 0.5) == 4.0  # negative control: the audit's log_s bound
    for bound in (
        lambda s: clamp(s, -10.0, 2.0),
        lambda s: clamp(s, -10.0, 2.0, outside="inward"),
        lambda s: soft_clamp(s, -10.0, 2.0),
    ):
        assert _descend(bound, 4.0, 0.5) == pytest.approx(0.5, abs=1e-3)


def test_inward_does_not_run_away_where_straight_through_does() -> None:
    assert _descend(lambda s: clamp(s, -10.0, 2.0), 3.0, 5.0) > 100  # the loss wants more for ever
    assert _descend(lambda s: clamp(s, -10.0, 2.0, outside="inward"), 3.0, 5.0) == 3.0


@DTYPES
def test_clamp_values_are_torchs_also_at_infinity_and_nan(dtype: torch.dtype) -> None:
    x = torch.tensor([-math.inf, -7.0, -1.0, 0.25, 1.0, 9.0, math.inf], dtype=dtype, requires_grad=True)
    for outside in ("straight_through", "inward", "zero"):
        assert torch.equal(clamp(x, -1.0, 1.0, outside), x.clamp(-1, 1))
    assert torch.autograd.grad(clamp(x, -1.0, 1.0).sum(), x)[0].tolist() == [1.0] * 7
    assert clamp(torch.tensor(math.nan, dtype=dtype), 0.0, 1.0).isnan()


def test_the_usual_straight_through_sum_rounds_and_is_nan_at_infinity() -> None:
    x = torch.tensor([1e8, math.inf])
    usual = x + (x.clamp(max=0.1) - x).detach()
    assert usual[0] != torch.tensor(0.1)  # negative control: rounded away
    assert usual[1].isnan()
    assert clamp(x, None, 0.1).tolist() == [torch.tensor(0.1).item()] * 2


@DTYPES
def test_soft_clamp_is_the_identity_inside_and_never_outside(dtype: torch.dtype) -> None:
    inside = torch.linspace(-3, 1, 41, dtype=torch.float64).to(dtype)
    assert torch.equal(soft_clamp(inside, -4.0, 2.0), inside)
    x = torch.tensor([-math.inf, -1e4, -5.0, 3.0, 100.0, math.inf], dtype=dtype, requires_grad=True)
    value = soft_clamp(x, -4.0, 2.0)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert (value >= -4).all()
    assert (value <= 2).all()
    assert (gradient[2:5] > 0).all()
    assert gradient.isfinite().all()
    assert gradient[4].item() == pytest.approx(1 / 100**2, rel=0.05)
    assert soft_clamp(torch.tensor(math.nan, dtype=dtype), -1.0, 1.0, 0.5).isnan()


def test_soft_clamp_differentiates_twice_and_compiles() -> None:
    x = torch.tensor([-6.0, 0.3, 2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: soft_clamp(v, -4.0, 2.0), x)
    assert torch.autograd.gradgradcheck(lambda v: soft_clamp(v, -4.0, 2.0), x)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(soft_clamp, fullgraph=True, backend="eager")(x, -4.0, 2.0), soft_clamp(x, -4.0, 2.0))


def test_attach_gradient_has_one_tensors_value_and_the_others_derivative() -> None:
    x = torch.tensor([1.0, math.inf], requires_grad=True)
    y = attach_gradient(torch.tensor([5.0, 6.0]), x * 2)
    assert y.tolist() == [5.0, 6.0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [2.0, 2.0]


def test_wrong_bounds_are_refused() -> None:
    x = torch.zeros(1)
    with pytest.raises(UsageError, match="lower must not exceed upper"):
        clamp(x, 2.0, 1.0)
    with pytest.raises(UsageError, match="outside must be one of"):
        clamp(x, 0.0, 1.0, "sideways")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="do not fit"):
        soft_clamp(x, 0.0, 1.0, margin=1.0)
    with pytest.raises(UsageError, match="margin must be positive"):
        soft_clamp(x, 0.0, 1.0, margin=0.0)
    with pytest.raises(UsageError, match="complex64"):
        clamp(x.to(torch.complex64), 0.0, 1.0)
