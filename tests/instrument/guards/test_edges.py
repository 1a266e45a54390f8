"""Gradients that torch makes NaN or Inf at an edge are 0 there, torch's own elsewhere: every spelling, four dtypes, every order, every road back."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import instrument
from tests.instrument.guards.edges import EDGES, SPELLINGS, WITHOUT_EDGE, arguments, call, gradients, leaves_of
from tests.instrument.no_harm.bits import difference

# float_power_ exists for float64 only; erfinv_ and its like have every dtype.
ONLY = {"Tensor.float_power_": (torch.float64,)}
NOT_DIFFERENTIABLE_IN_PLACE = ("acosh_", "arccosh_", "atanh_", "arctanh_", "lgamma_", "digamma_")
pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0:UserWarning", "ignore:torch.(qr|svd) is deprecated:UserWarning")
CASES = [
    (s, dtype)
    for s in SPELLINGS
    if s.op in EDGES and s.name not in NOT_DIFFERENTIABLE_IN_PLACE
    for dtype in EDGES[s.op].dtypes
    if dtype in ONLY.get(s.path, EDGES[s.op].dtypes)
]
OPS = [(op, edge.dtypes[-1]) for op, edge in EDGES.items()]
BY_OP = {s.op: s for s in reversed(SPELLINGS) if not s.inplace}


def bits(x):
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize])


def assert_repaired(plain, guarded, *, signs_of_zero=True):
    assert any(not torch.isfinite(p).all() for p in plain), "negative control: plain torch must fail here"
    for p, g in zip(plain, guarded, strict=True):
        assert torch.isfinite(g).all()
        fine = torch.isfinite(p)
        assert torch.equal(bits(p)[fine], bits(g)[fine]) if signs_of_zero else torch.equal(p[fine], g[fine])


def test_every_guarded_operation_has_its_edge_or_a_reason():
    assert {s.op for s in SPELLINGS} == EDGES.keys() | WITHOUT_EDGE.keys()


@pytest.mark.parametrize(("spelling", "dtype"), CASES, ids=lambda v: getattr(v, "path", str(v)))
def test_a_gradient_that_would_not_be_finite_is_neutralised_and_no_other_bit_moves(spelling, dtype):
    edge = EDGES[spelling.op]
    scales = (1.0, 0.0)  # 0 is what a `where` sends

    def results_and_gradients(scale):
        args = arguments(edge.bad(dtype), dtype)
        results = call(spelling, args, edge.kwargs)
        return [r.detach() for r in results], gradients(results, leaves_of(args), order=edge.order, scale=scale)

    plain = [results_and_gradients(scale) for scale in scales]
    with instrument.stable(profile="guard") as run:
        call(spelling, arguments(edge.bad(dtype), dtype), edge.kwargs)
        assert run.events == (), "a result is no finding"
        guarded = [results_and_gradients(scale) for scale in scales]
    for before, after in zip(plain, guarded, strict=True):
        assert difference(before[0], after[0]) is None
        # Written in place, the old values get a gradient of 0 too, and -0.0 + 0.0 is 0.0.
        assert_repaired(before[1], after[1], signs_of_zero=not spelling.inplace)
    assert {(e.code, e.action) for e in run.events} == {(edge.code, "neutralised")}
    assert all(e.file.endswith("edges.py") and "function(" in e.source for e in run.events)


@pytest.mark.parametrize(("op", "dtype"), OPS, ids=str)
def test_healthy_arguments_keep_graph_and_bits_and_raise_no_alarm(op, dtype):
    edge = EDGES[op]
    found = []
    for guarded in (False, True):
        args = arguments(edge.good(dtype), dtype)
        if guarded:
            with instrument.stable(profile="guard") as run:
                out = call(BY_OP[op], args, edge.kwargs)
                grads = gradients(out, leaves_of(args))
        else:
            out = call(BY_OP[op], args, edge.kwargs)
            grads = gradients(out, leaves_of(args))
        found.append(([x.detach() for x in out], grads, [x.grad_fn.name() for x in out if x.requires_grad]))
    assert difference(found[0], found[1]) is None
    assert found[0][2] == found[1][2]
    assert run.events == ()


RAISES_TWICE = ("logdet", "slogdet", "eig")
"""torch itself raises for their second order here: a singular solve, or a phase that the sum depends on."""


def test_the_gradient_of_the_gradient_is_finite_too():
    with instrument.stable(profile="guard"):
        for op, dtype in OPS:
            if op in RAISES_TWICE:
                continue
            args = arguments(EDGES[op].bad(dtype), dtype)
            out = [o for o in call(BY_OP[op], args, EDGES[op].kwargs) if o.requires_grad]
            first = torch.autograd.grad([o.sum() for o in out], leaves_of(args), create_graph=True)
            used = [(g * g).sum() for g in first if g.requires_grad]
            second = torch.autograd.grad(used, leaves_of(args), allow_unused=True) if used else []
            for g in (*first, *second):
                assert g is None or torch.isfinite(g).all(), op


def roads():
    def by_backward(f, leaves):
        f(*leaves).backward()
        return [x.grad for x in leaves]

    def by_grad(f, leaves):
        return list(torch.autograd.grad(f(*leaves), leaves))

    def twice_through_one_graph(f, leaves):
        loss = f(*leaves)
        loss.backward(retain_graph=True)
        loss.backward()
        return [x.grad / 2 for x in leaves]

    def accumulated(f, leaves):
        f(*leaves).backward()
        f(*leaves).backward()
        return [x.grad / 2 for x in leaves]

    def hooked(f, leaves):
        seen = []
        for x in leaves:
            x.register_hook(seen.append)
        f(*leaves).backward()
        assert len(seen) == len(leaves)
        return [x.grad for x in leaves]

    def checkpointed(f, leaves):
        checkpoint(f, *leaves, use_reentrant=False).backward()
        return [x.grad for x in leaves]

    def checkpointed_reentrant(f, leaves):
        checkpoint(f, *leaves, use_reentrant=True).backward()
        return [x.grad for x in leaves]

    def batched(f, leaves):
        loss = f(*leaves)
        return [g[0] for g in torch.autograd.grad(loss, leaves, torch.ones(2, dtype=loss.dtype), is_grads_batched=True)]

    return [by_backward, by_grad, twice_through_one_graph, accumulated, hooked, checkpointed, checkpointed_reentrant, batched]


def trap(op, dtype):
    """The trap itself: what is not finite is chosen away, and sends 0 back. A function of leaves and its leaves."""
    edge = EDGES[op]

    def f(*leaves):
        rest = iter(leaves)
        args = [next(rest) if isinstance(v, list) else v for v in edge.bad(dtype)]
        return sum(torch.where(torch.isfinite(r), r, 0.0).sum() for r in call(BY_OP[op], args, edge.kwargs))

    return f, leaves_of(arguments(edge.bad(dtype), dtype))


ROADS = [(op, dtype) for op, dtype in OPS if EDGES[op].order == 1 and dtype.itemsize > 2]


@pytest.mark.parametrize("road", roads(), ids=lambda r: r.__name__)
def test_every_road_back(road):
    failing = 0
    with instrument.stable(profile="guard"):
        repaired = [(op, road(*trap(op, dtype))) for op, dtype in ROADS if not (road.__name__ == "batched" and op == "eig")]
    for op, guarded in repaired:
        f, leaves = trap(op, dict(ROADS)[op])
        plain = list(torch.autograd.grad(f(*leaves), leaves))
        if any(not torch.isfinite(p).all() for p in plain):
            failing += 1
            assert_repaired(plain, guarded)
        else:
            assert difference(plain, guarded) is None, op
    assert failing >= 30, "negative control"


def test_only_the_contribution_of_the_bad_element_is_lost_where_an_operand_broadcasts():
    def loss(scale, x):
        return torch.where(x > 0, scale / x, 0.0).sum()

    scale, x = torch.tensor(3.0, requires_grad=True), torch.tensor([0.0, 2.0, 4.0], requires_grad=True)
    assert torch.autograd.grad(loss(scale, x), scale)[0].isnan(), "negative control"
    with instrument.stable(profile="guard"):
        by_scale, by_x = torch.autograd.grad(loss(scale, x), (scale, x))
    assert by_scale.item() == 0.75
    assert torch.equal(by_x, torch.tensor([0.0, -0.75, -0.1875]))


def test_the_healthy_operand_keeps_its_gradient_beside_a_bad_one():
    n, d = torch.tensor([3.0, 5.0], requires_grad=True), torch.tensor([1e-30, 2.0], requires_grad=True)
    plain = torch.autograd.grad((n / d).sum(), (n, d))
    assert plain[1].isinf().any(), "negative control"
    with instrument.stable(profile="guard") as run:
        guarded = torch.autograd.grad((n / d).sum(), (n, d))
    assert torch.equal(guarded[0], plain[0])
    assert torch.equal(guarded[1], torch.tensor([0.0, -1.25]))
    assert [e.code for e in run.events] == ["NS304"]


def test_the_exponent_may_fail_where_the_base_does_not():
    base, exponent = torch.tensor([-2.0, 3.0], requires_grad=True), torch.tensor([2.0, 2.0], requires_grad=True)
    plain = torch.autograd.grad((base**exponent).sum(), (base, exponent))
    assert plain[1][0].isnan(), "negative control"
    with instrument.stable(profile="guard"):
        guarded = torch.autograd.grad((base**exponent).sum(), (base, exponent))
    assert torch.equal(guarded[0], plain[0])
    assert torch.equal(guarded[1], torch.tensor([0.0, plain[1][1].item()]))


def test_the_gradient_of_eigenvalues_alone_stays_torchs_at_a_degenerate_matrix():
    a = torch.eye(3, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    plain = torch.autograd.grad((torch.linalg.eigh(a)[0] * weight).sum(), a)
    with instrument.stable(profile="guard") as run:
        guarded = torch.autograd.grad((torch.linalg.eigh(a)[0] * weight).sum(), a)
    assert torch.equal(plain[0], guarded[0])
    assert run.events == ()


def test_a_result_is_written_into_as_any_other():
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    with instrument.stable(profile="guard"):
        y = torch.sqrt(x)
        y += 1.0
        y.clamp_(max=2.5)
        h = x * 1.0
        z = torch.sqrt(h)
        h.mul_(2.0)
        (y.sum() + z.sum()).backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 0.25]))


def test_an_upstream_nan_is_not_hidden_away_from_the_edge():
    x = torch.tensor([0.0, 4.0, 9.0], requires_grad=True)
    with instrument.stable(profile="guard") as run:
        (torch.sqrt(x) * torch.tensor([1.0, 1.0, float("nan")])).sum().backward()
    assert x.grad[:2].tolist() == [0.0, 0.25]
    # What the step guard makes of it is its own affair; this guard must not have claimed it.
    assert [(e.code, "1 elements" in e.message) for e in run.events if e.code == "NS704"] == [("NS704", True)]
    assert x.grad[2].isnan() or "NS506" in {e.code for e in run.events}


def test_observing_alters_nothing():
    def found(op, dtype):
        args = arguments(EDGES[op].bad(dtype), dtype)
        return gradients(call(BY_OP[op], args, EDGES[op].kwargs), leaves_of(args), order=EDGES[op].order)

    with instrument.stable(profile="observe") as run:
        seen = [found(op, dtype) for op, dtype in OPS]
    assert not any(e.repaired for e in run.events)
    for (op, dtype), grads in zip(OPS, seen, strict=True):
        assert difference(found(op, dtype), grads) is None, op


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_forward_mode_derivatives_pass_through():
    from torch.autograd import forward_ad

    x, t = torch.tensor([0.0, 4.0], requires_grad=True), torch.tensor([1.0, 1.0])

    def tangent():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(torch.sqrt(forward_ad.make_dual(x, t))).tangent

    plain = tangent()
    with instrument.stable(profile="guard"):
        assert difference(plain.detach(), tangent().detach()) is None
