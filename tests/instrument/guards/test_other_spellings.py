"""Each spelling that the tables of edges and of calls do not reach: the hazard, called through it, is dealt with and named.

Squares and functions in place have no gradient at fault at the places of those tables, attention and the seams of autograd take other arguments.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import instrument
from instrument.guards import OPERATION_GUARDS, backward
from instrument.guards.inverse_function import InverseFunctionGuard
from instrument.guards.native_attention import NativeAttentionGuard
from instrument.guards.pole import PoleGuard
from instrument.guards.power import PowerGuard
from instrument.guards.softmax import AttentionPrecisionGuard

NAN = math.nan


def spellings(guard, *ops, inplace=None):
    found = [s for g in OPERATION_GUARDS if type(g) is guard for s in g.spellings()]
    return [s for s in found if (not ops or s.op in ops) and (inplace is None or s.inplace is inplace)]


def at(spelling):
    return getattr(spelling.owner, spelling.name)


SQUARES = spellings(PowerGuard, "square")
OUTSIDE = {"acos": 1.5, "asin": 1.5, "acosh": 0.5, "atanh": 1.0, "erfinv": 1.0, "ndtri": 1.0}
INVERSE_IN_PLACE = [s for s in spellings(InverseFunctionGuard, inplace=True) if s.op in OUTSIDE]
POLES_IN_PLACE = spellings(PoleGuard, "lgamma", "digamma", inplace=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spelling", SQUARES, ids=lambda s: s.path)
def test_a_square_that_overflows_is_bounded_with_a_gradient_through_this_spelling(spelling, dtype):
    too_large = 4.0 * torch.finfo(dtype).max ** 0.5

    def squares(x):
        return at(spelling)(x * 1.0) if spelling.inplace else at(spelling)(x)

    plain = squares(torch.tensor([too_large, 3.0], dtype=dtype))
    assert plain.tolist() == [math.inf, 9.0], "negative control"
    x = torch.tensor([too_large, -too_large, 3.0], dtype=dtype, requires_grad=True)
    with instrument.stable(profile="guard") as run:
        out = squares(x)
        (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert torch.isfinite(out).all()
    assert torch.isfinite(gradient).all()
    assert out[2] == 9.0
    assert gradient[2] == 6.0
    assert out[0] > torch.finfo(dtype).max * 0.1
    assert {(e.code, e.action) for e in run.events} == {("NS206", "bounded")}


@pytest.mark.parametrize("spelling", INVERSE_IN_PLACE, ids=lambda s: s.path)
def test_an_argument_beyond_the_domain_counts_as_its_end_in_place_where_the_config_bounds(spelling):
    values = [OUTSIDE[spelling.op], {"acosh": 2.0}.get(spelling.op, 0.5)]
    plain = at(spelling)(torch.tensor(values))
    assert not torch.isfinite(plain[0]), "negative control"
    with instrument.stable(profile="guard", sqrt={"bound_forward": True}) as run:
        written = torch.tensor(values)
        out = at(spelling)(written)
    assert out is written
    assert torch.isfinite(out).all()
    assert out[1].equal(plain[1])
    # acos, asin and acosh are finite at the end itself, the others at the nearest number inside.
    end = 1.0 - torch.finfo(torch.float32).eps if spelling.op in ("atanh", "erfinv", "ndtri") else 1.0
    at_end = getattr(torch.special if spelling.op in ("erfinv", "ndtri") else torch, spelling.op)(torch.tensor([end], dtype=torch.float64))
    torch.testing.assert_close(out[:1].double(), at_end, rtol=1e-3, atol=1e-6)
    assert {(e.code, e.action) for e in run.events} == {("NS605", "bounded")}


@pytest.mark.parametrize("spelling", POLES_IN_PLACE, ids=lambda s: s.path)
def test_a_pole_is_bounded_in_place_where_the_config_bounds(spelling):
    plain = at(spelling)(torch.tensor([0.0, 3.0]))
    assert not torch.isfinite(plain[0]), "negative control"
    with instrument.stable(profile="guard", log={"bound_forward": True}) as run:
        written = torch.tensor([0.0, 3.0])
        out = at(spelling)(written)
    assert out is written
    assert torch.isfinite(out).all()
    assert out[1].equal(plain[1])
    assert {(e.code, e.action) for e in run.events} == {("NS205", "bounded")}


@pytest.mark.parametrize("spelling", spellings(NativeAttentionGuard), ids=lambda s: s.path)
def test_a_query_that_may_attend_to_nothing_gives_the_bias_through_this_spelling(spelling):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    nn.init.normal_(attention.out_proj.bias)
    x = torch.randn(2, 3, 8)
    empty = torch.tensor([[False] * 3, [True] * 3])

    def attend():
        with torch.no_grad():
            weights = (attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias)
            return at(spelling)(x, x, x, 8, 2, *weights, empty, True, True, 1)

    plain, _ = attend()
    assert plain[1].isnan().all(), "negative control"
    with instrument.stable(profile="guard") as run:
        out, weights = attend()
    assert out[0].equal(plain[0])
    assert out[1].equal(attention.out_proj.bias.detach().expand(3, 8))
    assert torch.isfinite(weights).all()
    assert {(e.code, e.action) for e in run.events} == {("NS401", "repaired")}


@pytest.fixture
def reduced_attention():
    """torch's own form by formulas, without the float32 that it takes by default."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


@pytest.mark.usefixtures("reduced_attention")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spelling", spellings(AttentionPrecisionGuard), ids=lambda s: s.path)
def test_attention_in_half_precision_is_computed_in_float32_with_upcast_through_this_spelling(spelling, dtype):
    # A score of 640,000 is beyond float16, and bfloat16 rounds the difference of two large scores away.
    large = {torch.float16: 100.0, torch.bfloat16: 16.0}[dtype]
    q = torch.full((1, 1, 2, 64), large, dtype=dtype)
    k = q.clone()
    k[..., 1, 0] -= 1.0
    v = torch.eye(2, 64, dtype=dtype)[None, None]
    exact = nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    plain = at(spelling)(q, k, v)
    assert not torch.allclose(plain.double(), exact, rtol=2.0 * torch.finfo(dtype).eps, atol=1e-3), "negative control"
    with instrument.stable(profile="guard", softmax={"upcast": True}):
        out = at(spelling)(q, k, v)
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), exact, rtol=2.0 * torch.finfo(dtype).eps, atol=1e-5)


def _failing_loss(w):
    return (w * math.inf).sum()


def _scaled(scale, w):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    return scale(scaler, _failing_loss(w)).backward()


ROADS = {
    "method": lambda f, w: f(_failing_loss(w)),
    "backward": lambda f, w: f(_failing_loss(w)),
    "scale": _scaled,
    "grad": lambda f, w: f((w * 0.0).sqrt().sum() * 0.0 + (w / 0.0).sum(), [w]),
    "func": lambda f, w: f(lambda x: (x * NAN).sum())(w.detach()),
    "vmap": lambda f, w: f(torch.func.grad(lambda x: (x * NAN).sum()))(w.detach()[None]),
}
HEALTHY = {
    "scale": lambda f, w: f(torch.amp.GradScaler("cpu"), w.sum()),
    "grad": lambda f, w: f(w.square().sum(), [w]),
    "func": lambda f, w: f(lambda x: x.square().sum())(w.detach()),
    "vmap": lambda f, w: f(torch.func.grad(lambda x: x.square().sum()))(w.detach()[None]),
}
NAMED = {"method": "NS509", "backward": "NS509", "scale": "NS509", "grad": "NS509", "func": "NS506", "vmap": "NS506"}


@pytest.mark.parametrize("spelling", backward.spellings(), ids=lambda s: s.path)
def test_a_loss_or_gradient_that_is_not_finite_is_named_at_the_line_that_calls_this_spelling(spelling):
    def road():
        return ROADS[spelling.op](at(spelling), torch.ones(2, requires_grad=True))

    with instrument.stable(profile="guard") as healthy:
        HEALTHY.get(spelling.op, lambda f, w: f(w.square().sum()))(at(spelling), torch.ones(2, requires_grad=True))
    assert healthy.events == (), "negative control"
    with instrument.stable(profile="guard") as run:
        road()
    named = [e for e in run.events if e.code == NAMED[spelling.op]]
    assert named
    assert all(e.file == __file__ for e in named)
