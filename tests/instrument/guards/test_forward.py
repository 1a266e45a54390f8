"""Results that are not finite although their arguments are: legal until a step fails, named then, bounded from then on or where the config asks."""

import math

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import instrument
from tests.instrument.guards.edges import SPELLINGS

INF = math.inf
EYE = [[1.0, 0.0], [0.0, 1.0]]
ONES = [[1.0, 1.0], [1.0, 1.0]]

# Operation -> arguments whose result is not finite; the finding; the value that stands there once it is bounded (None: any finite one).
BIRTHS = {
    "div": (([1.0, 0.0], [0.0, 0.0]), "NS304", [2.0**63, 0.0]),
    "remainder": (([1.0, 3.0], [0.0, 2.0]), "NS304", [0.0, 1.0]),
    "fmod": (([1.0, 3.0], [0.0, 2.0]), "NS304", [0.0, 1.0]),
    "reciprocal": (([0.0, 2.0],), "NS304", [2.0**63, 0.5]),
    "rsqrt": (([0.0, 4.0],), "NS304", None),
    "pow": (([0.0, 4.0], -1.0), "NS206", [torch.finfo(torch.float32).max, 0.25]),
    "sqrt": (([-1.0, 4.0],), "NS704", [0.0, 2.0]),
    "acos": (([1.0000001, 1.0],), "NS605", [0.0, 0.0]),
    "asin": (([-1.5, 1.0],), "NS605", [math.asin(-1.0), math.asin(1.0)]),
    "acosh": (([0.5, 1.0],), "NS605", [0.0, 0.0]),
    "atanh": (([1.0, 0.0],), "NS605", None),
    "erfinv": (([1.0, 0.0],), "NS605", None),
    "ndtri": (([0.0, 0.5],), "NS605", None),
    "log": (([0.0, 1.0],), "NS205", None),
    "log2": (([-1.0, 2.0],), "NS205", None),
    "log10": (([0.0, 10.0],), "NS205", None),
    "log1p": (([-1.0, 0.0],), "NS205", None),
    "logit": (([0.0, 0.5],), "NS205", None),
    "lgamma": (([0.0, 1.0],), "NS205", None),
    "digamma": (([0.0, 1.0],), "NS205", None),
    "xlogy": (([1.0, 1.0], [0.0, 1.0]), "NS205", None),
    "xlog1py": (([1.0, 1.0], [-1.0, 0.0]), "NS205", None),
    "std": (([[1.0]], -1), "NS707", [0.0]),
    "var": (([[1.0]], -1), "NS707", [0.0]),
    "prod": (([1e30, 1e30], 0), "NS708", None),
    "cumprod": (([1e30, 1e30], 0), "NS708", None),
    "vector_norm": (([3e38, 3e38],), "NS704", None),
    "logdet": ((ONES,), "NS703", None),
    "matrix_exp": (([[200.0, 0.0], [0.0, 0.0]],), "NS805", None),
}
BY_OP = {s.op: s for s in reversed(SPELLINGS) if not s.inplace and not s.name.startswith("__")}
WITHOUT_GRADIENT = [op for op in BIRTHS if op != "vector_norm"]  # norms are looked at where there is a gradient


def tensors(args, **kwargs):
    return [torch.tensor(a, **kwargs) if isinstance(a, list) else a for a in args]


def current(op):
    return getattr(BY_OP[op].owner, BY_OP[op].name)


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    """torch warns of one sample itself."""


pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0:UserWarning")


@pytest.mark.parametrize("op", WITHOUT_GRADIENT)
def test_a_result_that_is_not_finite_is_legal_and_no_event(op):
    args, _, _ = BIRTHS[op]
    plain = current(op)(*tensors(args))
    assert not torch.isfinite(plain).all(), "negative control"
    with instrument.stable(profile="guard") as run:
        guarded = current(op)(*tensors(args))
        out = current(op)(*tensors(args), out=torch.empty_like(plain)) if op not in ("logdet", "matrix_exp", "xlog1py_") else plain
    assert torch.equal(plain.nan_to_num(7.0), guarded.nan_to_num(7.0))
    assert torch.equal(plain.nan_to_num(7.0), out.nan_to_num(7.0))
    assert run.events == ()


@pytest.mark.parametrize("op", BIRTHS)
def test_the_step_that_it_spoils_is_named_after_it_and_the_next_one_is_bounded(op):
    args, code, expected = BIRTHS[op]
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=1e-38)  # a bounded result may still be near the largest number
    results = []

    def step():
        optimizer.zero_grad()
        leaves = tensors(args, requires_grad=True)
        result = current(op)(*leaves)
        results.append(result.detach())
        (weight * weight + result.sum() * weight).backward()
        optimizer.step()

    with instrument.stable(profile="guard") as run:
        step()
        step()
        step()
    assert not torch.isfinite(results[0]).all()
    first = run.events[0]
    assert (first.code, first.action, first.op) == (code, "observed", op)
    assert first.file == __file__
    assert "current(op)(*leaves)" in first.source
    assert (code, "bounded") in {(e.code, e.action) for e in run.events}
    assert torch.isfinite(results[1]).all()
    assert torch.isfinite(results[2]).all()
    if expected is not None:
        # Half of the exponent's range is left for what follows.
        largest = torch.finfo(torch.float32).max ** 0.5
        assert results[2].flatten().tolist() == pytest.approx([max(-largest, min(largest, value)) for value in expected], rel=1e-6)
    assert run.tally.skipped == 1
    assert torch.isfinite(weight).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_line_that_is_armed_between_a_checkpoint_and_its_recomputation_does_the_same_in_both(reentrant):
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def f(w):
        return torch.sqrt(w * w - 2.5) + torch.acos(w / 1.5)

    assert not torch.isfinite(f(weight)).all(), "negative control"
    with instrument.stable(profile="guard") as run:
        for _ in range(4):
            optimizer.zero_grad()
            torch.utils.checkpoint.checkpoint(f, weight, use_reentrant=reentrant).sum().backward()
            optimizer.step()
    assert ("NS704", "bounded") in {(e.code, e.action) for e in run.events}
    assert torch.isfinite(weight).all()
    assert weight[1] != 2.0


@pytest.mark.parametrize("op", BIRTHS)
def test_the_config_may_bound_at_once(op):
    args, code, expected = BIRTHS[op]
    bound = {name: {"bound_forward": True, "gradient": "neutralise"} for name in ("log", "sqrt", "division")}
    with instrument.stable(profile="guard", **bound) as run:
        leaves = tensors(args, requires_grad=True)
        result = current(op)(*leaves)
        gradients = torch.autograd.grad(result.sum(), [x for x in leaves if isinstance(x, torch.Tensor)])
    assert torch.isfinite(result).all()
    assert all(torch.isfinite(g).all() for g in gradients)
    if expected is not None:
        assert result.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert (code, "bounded") in {(e.code, e.action) for e in run.events}


def test_the_mean_of_nothing_is_named_and_then_counts_as_nothing():
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    losses = torch.ones(4)
    assert losses[losses > 2.0].mean().isnan(), "negative control"
    with instrument.stable(profile="guard") as run:
        for _ in range(3):
            optimizer.zero_grad()
            loss = weight * weight + losses[losses > 2.0].mean() * weight
            loss.backward()
            optimizer.step()
    assert [(e.code, e.action, e.op) for e in run.events if e.code == "NS707"] == [("NS707", "observed", "mean"), ("NS707", "bounded", "mean")]
    assert run.tally.skipped == 1
    assert torch.isfinite(weight)


@pytest.mark.parametrize("form", ["x / y", "x.div(y)", "torch.true_divide(x, y)", "x.div_(y)", "x.__itruediv__(y)"])
def test_every_form_of_division_is_bounded_where_it_is_asked_for(form):
    x, y = torch.tensor([1.0, -1.0, 6.0]), torch.tensor([0.0, 0.0, 2.0])
    with instrument.stable(profile="guard", division={"bound_forward": True, "gradient": "neutralise"}):
        result = eval(form, {"x": x, "y": y, "torch": torch})
    assert result.tolist() == [2.0**63, -(2.0**63), 3.0]


def test_infinities_that_are_meant_raise_no_alarm():
    with instrument.stable(profile="guard") as run:
        x = torch.tensor([1.0, 0.0, -2.0], requires_grad=True)
        zero = torch.zeros(3)
        assert (1.0 / zero == INF).all()
        assert ((x / zero) > 1e9).tolist() == [True, False, False]
        assert torch.logsumexp(torch.full((2, 3), -INF), -1).tolist() == [-INF, -INF]
        assert torch.tensor(1e30) / torch.tensor(1.0) == 1e30
        assert torch.tensor(1e300, dtype=torch.float64) / 2.0 == 5e299
        best = torch.tensor(INF)
        assert torch.minimum(best / torch.tensor(2.0), torch.tensor(1.0)) == 1.0
        assert (torch.tensor([4, 9]) / torch.tensor([2, 0])).tolist() == [2.0, INF]
        assert torch.tensor([1 + 1j]) ** 2 == torch.tensor([2j])
        assert torch.sqrt(torch.tensor(INF)) == INF
        assert torch.atanh(torch.tensor(1.0)) == INF
        masked = torch.where(x > 0, x, torch.tensor(-INF))
        (masked.max() * 2.0).backward()
        optimizer = torch.optim.SGD([x], lr=0.1)
        optimizer.step()
    assert run.events == ()


def test_integers_complex_sparse_and_subclasses_pass_through():
    class Tagged(torch.Tensor):
        pass

    with instrument.stable(profile="guard", division={"bound_forward": True, "gradient": "neutralise"}) as run:
        assert (torch.tensor([1 + 0j]) / torch.tensor([0j])).isnan().any()
        tagged = torch.ones(2).as_subclass(Tagged) / torch.zeros(2).as_subclass(Tagged)
        assert type(tagged) is Tagged
        assert tagged.isinf().all()
        sparse = torch.eye(2).to_sparse() / 0.0
        assert sparse.is_sparse
        assert torch.empty(2, device="meta").sqrt().is_meta
        assert torch.vmap(lambda a: a / 0.0)(torch.ones(3)).isinf().all()
        assert torch.func.jvp(lambda a: torch.sqrt(a), (torch.tensor(0.0),), (torch.tensor(1.0),))[1].isinf()
    assert run.events == ()


def test_what_raises_still_raises_the_same():
    calls = [
        lambda: torch.ones(2) / torch.ones(3),
        lambda: torch.div(torch.ones(2), None),
        lambda: torch.tensor([1, 2]).div_(torch.ones(2)),
        lambda: torch.ones(2, requires_grad=True).sqrt_(),
        lambda: torch.linalg.eigh(torch.ones(2)),
        lambda: torch.std(torch.tensor([1, 2])),
        lambda: torch.cumprod(torch.ones(2)),
        lambda: torch.pow(torch.tensor([1, 2]), -1),
    ]

    def raised(f):
        with pytest.raises((RuntimeError, TypeError)) as caught:
            f()
        return type(caught.value), str(caught.value)

    plain = [raised(f) for f in calls]
    with instrument.stable(profile="guard"):
        assert [raised(f) for f in calls] == plain


def test_a_division_by_a_norm_is_told_from_a_division_by_zero():
    x = torch.zeros(2, 3, dtype=torch.float16, requires_grad=True)
    assert torch.nn.functional.normalize(x, dim=-1).isnan().all(), "negative control: 1e-12 is 0 in float16"
    with instrument.stable(profile="guard", division={"bound_forward": True, "gradient": "neutralise"}) as run:
        torch.nn.functional.normalize(x, dim=-1).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert {e.code for e in run.events} == {"NS303"}
