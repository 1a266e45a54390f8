"""`amp.float32_ops` and `softmax.upcast`: float32 where the config asks and half precision failed, and not one bit elsewhere."""

import math

import pytest
import torch
from torch.nn import functional as F

import instrument
from instrument.guards.half_precision import HalfPrecisionGuard

HALF = torch.float16

OVERFLOWING = {
    "sum": lambda: torch.full((70_000,), 1.0, dtype=HALF).sum(),
    "cumsum": lambda: torch.full((70_000,), 1.0, dtype=HALF).cumsum(0)[-1],
    "pow": lambda: torch.full((3,), 300.0, dtype=HALF) ** 2,
    "exp2": lambda: torch.exp2(torch.tensor([17.0], dtype=HALF)),
    "exp": lambda: torch.exp(torch.tensor([12.0], dtype=HALF)),
    "reciprocal": lambda: torch.reciprocal(torch.tensor([1e-5], dtype=HALF)),
}


def _names(spelling):
    return spelling.path


@pytest.mark.parametrize("op", OVERFLOWING)
def test_an_overflow_under_autocast_is_computed_in_float32(op):
    make = OVERFLOWING[op]
    with torch.autocast("cpu", HALF):
        plain = make()
        assert plain.dtype is HALF
        assert not torch.isfinite(plain).all(), "negative control"
        with instrument.stable(profile="guard") as run:
            guarded = make()
    expected = make_in_float64(op)
    assert guarded.dtype is torch.float32
    torch.testing.assert_close(guarded.double(), expected, rtol=2e-3 if op == "reciprocal" else 1e-6, atol=0.0)
    assert [(e.action, e.op, e.dtype) for e in run.events] == [("repaired", op, "float16")]


def make_in_float64(op):
    return {
        "sum": torch.tensor(70_000.0),
        "cumsum": torch.tensor(70_000.0),
        "pow": torch.full((3,), 90_000.0),
        "exp2": torch.tensor([131_072.0]),
        "exp": torch.tensor([math.exp(12.0)], dtype=torch.float64),
        "reciprocal": 1.0 / torch.tensor([1e-5], dtype=HALF).double(),
    }[op].double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_finite_result_under_autocast_is_the_same_by_one_bit_and_has_the_same_dtype(dtype):
    torch.manual_seed(0)
    x = torch.randn(4, 6).to(dtype)
    calls = {
        "sum": lambda: x.sum(-1),
        "torch.sum": lambda: torch.sum(x),
        "cumsum": lambda: torch.cumsum(x, 0),
        "layer_norm": lambda: F.layer_norm(x, (6,)),
        "group_norm": lambda: F.group_norm(x, 2),
        "rms_norm": lambda: F.rms_norm(x, (6,)),
        "softplus": lambda: F.softplus(x),
        "softmax": lambda: x.softmax(-1),
        "pow": lambda: x**2,
        "exp": lambda: x.exp(),
        "attention": lambda: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    }
    with torch.autocast("cpu", dtype):
        plain = {name: call() for name, call in calls.items()}
        with instrument.stable(profile="guard") as run:
            guarded = {name: call() for name, call in calls.items()}
    for name in calls:
        assert guarded[name].dtype is plain[name].dtype, name
        assert torch.equal(guarded[name], plain[name]), name
    assert not run.events


@pytest.mark.parametrize(
    "settings", [{"profile": "observe"}, {"profile": "guard", "amp": {"float32_ops": ["exp"]}}, {"profile": "guard", "anomaly": {"allow": ["sum"]}}]
)
def test_only_where_the_config_says_so(settings):
    with torch.autocast("cpu", HALF), instrument.stable(**settings):
        assert torch.isinf(OVERFLOWING["sum"]())


def test_outside_of_autocast_and_from_infinite_arguments_nothing_is_widened():
    with instrument.stable(profile="guard"):
        assert torch.isinf(OVERFLOWING["sum"]())
        with torch.autocast("cpu", HALF):
            out = torch.tensor([math.inf, 1.0], dtype=HALF).sum()
    assert out.dtype is HALF
    assert torch.isinf(out)


def test_the_gradient_is_that_of_the_float32_operation():
    x = torch.full((70_000,), 1.0, dtype=HALF, requires_grad=True)
    with torch.autocast("cpu", HALF), instrument.stable(profile="guard"):
        (x.sum() * 1e-3).backward()
    assert torch.equal(x.grad, torch.full_like(x, 1e-3))


@pytest.mark.parametrize("spelling", HalfPrecisionGuard().spellings(), ids=_names)
def test_every_spelling_is_replaced_and_put_back(spelling):
    original = getattr(spelling.owner, spelling.name)
    with instrument.stable(profile="guard"):
        assert getattr(spelling.owner, spelling.name).__wrapped__ is original
    assert getattr(spelling.owner, spelling.name) is original


def test_upcast_rounds_a_softmax_once_and_keeps_its_dtype():
    torch.manual_seed(0)
    x = (torch.randn(64, 33) * 8).to(torch.bfloat16)
    rounded_once = x.float().log_softmax(-1).to(torch.bfloat16)
    with instrument.stable(profile="guard", softmax={"upcast": True}):
        out = torch.log_softmax(x, -1)
        asked = torch.log_softmax(x, -1, dtype=torch.float32)
        untouched = torch.log_softmax(x.float(), -1)
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, rounded_once)
    exact = x.double().log_softmax(-1)
    assert ((out.double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5).all(), "half a unit in the last of eight digits, after float32's own error"
    assert asked.dtype is torch.float32
    assert torch.equal(untouched, torch.log_softmax(x.float(), -1))


def test_upcast_keeps_scores_that_leave_float16s_range():
    q = torch.full((1, 1, 2, 64), 60.0, dtype=HALF)
    q[..., 1, :] = -60.0
    v = torch.arange(2.0, dtype=HALF).view(1, 1, 2, 1).expand(1, 1, 2, 64).contiguous()

    def attention():
        return F.scaled_dot_product_attention(q, q, v, scale=1.0)

    expected = F.scaled_dot_product_attention(q.double(), q.double(), v.double(), scale=1.0).to(HALF)
    with instrument.stable(profile="guard", softmax={"upcast": True}):
        out = attention()
    assert out.dtype is HALF
    assert torch.equal(out, expected)
