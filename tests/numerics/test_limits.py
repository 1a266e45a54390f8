"""Bounds are tested at the bound and one step beyond, in the dtype they are for."""

import functools
import math
import warnings

import mpmath
import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.numerics import limits

_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def successor(x: torch.Tensor) -> torch.Tensor:
    """The next number up, by the bit pattern (positive x)."""
    return (x.view(_BITS[x.dtype]) + 1).view(x.dtype)


EDGES = [
    (limits.largest_exp_argument, torch.exp),
    (limits.largest_exp2_argument, torch.exp2),
    (limits.largest_sinh_argument, torch.sinh),
    (limits.largest_sinh_argument, torch.cosh),
    (limits.largest_square_root, torch.square),
]


@pytest.mark.parametrize("dtype", limits.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(("bound", "function"), EDGES, ids=lambda f: getattr(f, "__name__", ""))
def test_function_is_finite_at_its_bound_and_overflows_just_beyond(dtype, bound, function):
    at = torch.tensor(bound(dtype), dtype=dtype)
    assert at.double().item() == bound(dtype), "the bound is a number of the dtype"
    assert torch.isfinite(function(at))
    beyond = at
    for _ in range(2):  # rounding of the result may absorb one step
        beyond = successor(beyond)
    assert torch.isinf(function(beyond))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_negative_control_log_of_max_overflows(dtype):
    naive = torch.tensor(torch.finfo(dtype).max, dtype=dtype).log()
    assert torch.isinf(naive.exp()), "the naive bound is past the end"
    assert limits.largest_exp_argument(dtype) < naive.item()


@pytest.mark.parametrize("dtype", limits.FLOAT_DTYPES, ids=str)
def test_largest_exp_argument_is_within_one_step_of_the_exact_logarithm(dtype):
    exact = mpmath.log(mpmath.mpf(torch.finfo(dtype).max))
    bound = torch.tensor(limits.largest_exp_argument(dtype), dtype=dtype)
    assert mpmath.mpf(bound.double().item()) <= exact < mpmath.mpf(successor(bound).double().item())


@pytest.mark.parametrize("dtype", limits.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.1, 1.0 / 3.0, 1e-3, 77.7, -0.1, -1e-3])
def test_rounding_is_directed(dtype, value):
    down, up = limits.round_down(value, dtype), limits.round_up(value, dtype)
    assert down <= value <= up
    representable = torch.tensor(value, dtype=torch.float64).to(dtype).double().item()
    assert representable in (down, up)


@pytest.mark.parametrize("dtype", limits.FLOAT_DTYPES, ids=str)
def test_smallest_reciprocal_is_normal_with_a_finite_reciprocal(dtype):
    x = torch.tensor(limits.smallest_reciprocal(dtype), dtype=dtype)
    assert torch.isfinite(1.0 / x)
    assert x.double().item() >= torch.finfo(dtype).smallest_normal


def test_negative_control_one_millionth_is_no_float16_epsilon():
    assert torch.isinf(1.0 / torch.tensor(1e-6, dtype=torch.float16))
    assert math.isfinite(1.0 / limits.smallest_reciprocal(torch.float16))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_other_dtypes_are_refused_by_name(dtype):
    with pytest.raises(UsageError, match=str(dtype)):
        limits.largest_exp_argument(dtype)


LIMITS = (
    limits.largest_exp_argument,
    limits.largest_exp2_argument,
    limits.largest_sinh_argument,
    limits.largest_square_root,
    limits.smallest_reciprocal,
)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda f: f.__name__)
def test_limits_are_constants_of_compiled_code(limit):
    def bounded(x):
        return x.clamp(max=limit(x.dtype))

    graphs = []

    def kept(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    x = torch.tensor([1.0, 1e30])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(torch.compile(bounded, fullgraph=True, backend=kept)(x), bounded(x))
    operations = [node for node in graphs[0].graph.nodes if node.op.startswith("call")]
    assert len(operations) == 1, "the bound is a number in the graph, its derivation no part of it"


def test_negative_control_a_cached_function_warns_inside_compiled_code():
    @functools.cache
    def cached(dtype):
        return math.log(torch.finfo(dtype).max)

    with pytest.warns(UserWarning, match="lru_cache"):
        torch.compile(lambda x: x.clamp(max=cached(x.dtype)), fullgraph=True, backend="eager")(torch.ones(2))


@pytest.mark.parametrize("dtype", limits.FLOAT_DTYPES, ids=str)
def test_rounding_agrees_with_a_cast_on_random_values(dtype):
    generator = torch.Generator().manual_seed(0)
    magnitudes = torch.rand(2000, generator=generator, dtype=torch.float64).mul(600).sub(300).mul(math.log(2.0)).exp()
    for value in torch.cat([magnitudes, -magnitudes]).tolist():
        nearest = torch.tensor(value, dtype=torch.float64).to(dtype).double().item()
        down, up = limits.round_down(value, dtype), limits.round_up(value, dtype)
        assert down <= value <= up
        assert nearest in (down, up), "one of the two is what the dtype's own rounding gives"


def test_limits_do_not_depend_on_the_default_device():
    with torch.device("meta"):
        assert limits.round_down(0.1, torch.float16) < 0.1 < limits.round_up(0.1, torch.float16)
