"""Sweeps over every public function of tensors: dtypes, edges, derivatives, compilation, vmap, shapes, strides, refusals.

A new public name belongs to one of the tables of `faces.py`, and is swept on arrival.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import latent_drift.stability as stability
from latent_drift.errors import NumericalError, UsageError
from latent_drift.numerics.limits import FLOAT_DTYPES
from tests.numerics.test_elementary import DTYPES, REFUSED
from tests.numerics.ulp import BITS
from tests.stability.faces import ASSERTIONS, ELSEWHERE, FACES, GRADIENTS

ALL = pytest.mark.parametrize("label", FACES)


def _inside(dtype: torch.dtype = torch.float64, rows: int = 3) -> Tensor:
    """Numbers in every domain there is: (0, 1)."""
    return (torch.rand(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1).to(dtype)


def test_every_public_name_stands_in_one_table() -> None:
    listed = [*{face.name for face in FACES.values()}, *GRADIENTS, *ASSERTIONS, *(name for names in ELSEWHERE.values() for name in names)]
    assert sorted(listed) == stability.__all__
    assert all(label.startswith(face.name) for label, face in FACES.items())


@DTYPES
@ALL
def test_dtype_and_shape_are_kept_and_the_argument_is_not_touched(label: str, dtype: torch.dtype) -> None:
    face, x = FACES[label], _inside(dtype)
    before = x.clone()
    value = face.call(x)
    assert value.dtype == dtype
    assert torch.equal(x, before)
    assert not face.keeps_shape or value.shape == x.shape


# --- edges -------------------------------------------------------------------------------------------------


def _edges(dtype: torch.dtype) -> list[float]:
    """Numbers at which formulas break: zeros of both signs, subnormals, the smallest normal, the ends of exp, square root and dtype."""
    info = torch.finfo(dtype)
    subnormal = torch.ones((), dtype=BITS[dtype]).view(dtype).item()
    sizes = [subnormal, info.smallest_normal / 4, info.smallest_normal, info.eps, 1.0, 12.0, 90.0, 800.0, math.sqrt(info.max), info.max / 2, info.max]
    exact = torch.tensor([0.0, *sizes], dtype=torch.float64).to(dtype).double().tolist()
    return [v for size in exact for v in (size, -size) if math.isfinite(v)]


# Where the exact result is beyond the dtype: the largest norm, sum and variance are.
_OVERFLOW = {
    "stable_norm": lambda v, info: abs(v) >= info.max / 2,
    "kahan_sum": lambda v, info: abs(v) >= info.max / 2,
    "pairwise_sum": lambda v, info: abs(v) >= info.max / 2,
    "welford, variance": lambda v, info: abs(v) >= math.sqrt(info.max),
}


@DTYPES
@pytest.mark.parametrize("label", [label for label, face in FACES.items() if face.edges])
def test_finite_arguments_give_finite_values_and_gradients(label: str, dtype: torch.dtype) -> None:
    face, info = FACES[label], torch.finfo(dtype)
    bad = []
    for edge in _edges(dtype):
        x = torch.tensor([[edge, 0.5, 0.25, 0.5], [0.25, edge, 0.5, edge]], dtype=dtype, requires_grad=True)
        value = face.call(x)
        (gradient,) = torch.autograd.grad(value, x, torch.ones_like(value))
        (blocked,) = torch.autograd.grad(face.call(x), x, torch.zeros_like(value))
        if label in _OVERFLOW and _OVERFLOW[label](edge, info):
            assert not value.isnan().any(), edge
            continue
        if not (value.isfinite().all() and gradient.isfinite().all() and (blocked == 0).all()):
            bad.append((edge, value.tolist(), gradient.tolist(), blocked.tolist()))
    assert not bad


def _naive(label: str) -> Callable[[Tensor], Tensor] | None:
    """The form that the function replaces, where it is one line."""
    return {
        "stable_exp": torch.exp,
        "stable_log": torch.log,
        "stable_sqrt": torch.sqrt,
        "stable_logit": lambda x: torch.log(x / (1 - x)),
        "stable_divide, denominator": lambda x: 1.0 / x,
        "stable_norm": lambda x: (x * x).sum().sqrt(),
        "log_sum_exp": lambda x: torch.exp(x).sum(-1).log(),
        "stable_softmax": lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
        "stable_log_softmax": lambda x: torch.log(torch.softmax(x, -1)),
        "welford, mean": lambda x: x.sum() / x.numel(),
        "welford, variance": lambda x: (x * x).mean() - x.mean() ** 2,
        "stable_softplus": lambda x: torch.log(1 + torch.exp(x)),
        "stable_sigmoid": lambda x: torch.exp(x) / (1 + torch.exp(x)),
        "stable_cross_entropy, classes": lambda x: -torch.log(torch.softmax(x, -1)[:, 0]).mean(),
        "stable_binary_cross_entropy, pred": lambda x: -(0.5 * torch.log(x) + 0.5 * torch.log(1 - x)).mean(),
        "stable_kl_divergence, logvar": lambda x: (0.5 * (x.exp() + 0.25 - 1 - x)).sum(-1).mean(),
        "stable_kl_divergence, prior_logvar": lambda x: (0.5 * (1.25 / (x.exp() + 1e-8) - 1 + x)).sum(-1).mean(),
        "gaussian_nll, logvar": lambda x: 0.5 * (x + 0.25 / x.exp()).mean(),
        "StableLayerNorm": lambda x: (x - x.mean(-1, keepdim=True)) / (((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 1e-5).sqrt(),
    }.get(label)


@pytest.mark.parametrize("label", [label for label in FACES if _naive(label) is not None])
def test_the_form_it_replaces_fails_that_test(label: str) -> None:
    naive = _naive(label)
    assert naive is not None
    bad = 0
    for dtype in FLOAT_DTYPES:
        for edge in _edges(dtype):
            if label in _OVERFLOW and _OVERFLOW[label](edge, torch.finfo(dtype)):
                continue
            x = torch.tensor([[edge, 0.5, 0.25, 0.5], [0.25, edge, 0.5, edge]], dtype=dtype, requires_grad=True)
            value = naive(x)
            (gradient,) = torch.autograd.grad(value, x, torch.ones_like(value))
            bad += not (value.isfinite().all() and gradient.isfinite().all())
    assert bad


@DTYPES
@ALL
def test_nan_is_not_hidden(label: str, dtype: torch.dtype) -> None:
    x = _inside(dtype)
    x[1, 2] = math.nan
    value = FACES[label].call(x)
    assert value.isnan().any()
    if FACES[label].keeps_shape:
        assert value[0].isfinite().all()  # and stays in its row


# --- derivatives, compilation, vmap ------------------------------------------------------------------------


@ALL
def test_differentiates_twice(label: str) -> None:
    face, x = FACES[label], _inside(rows=2).requires_grad_()
    assert torch.autograd.gradcheck(face.call, x)
    if face.twice:
        assert torch.autograd.gradgradcheck(face.call, x)
    else:  # torch's fused attention has no second derivative; its plain form does
        with sdpa_kernel(SDPBackend.MATH):
            assert torch.autograd.gradgradcheck(face.call, x)


_COMPILED = list({face.name: label for label, face in FACES.items()}.values())  # one graph per function: it holds the others' operations


@pytest.mark.parametrize("label", _COMPILED)
def test_compiles_in_one_graph_with_the_same_value_and_gradient(label: str) -> None:
    torch._dynamo.reset()
    face, x = FACES[label], _inside().requires_grad_()
    compiled = torch.compile(face.call, fullgraph=True, backend="aot_eager")
    value, expected = compiled(x), face.call(x)
    assert torch.allclose(value, expected, rtol=1e-12, atol=1e-15)
    weight = torch.linspace(0.5, 2.0, value.numel(), dtype=torch.float64).reshape(value.shape)
    gradient, expected_gradient = (torch.autograd.grad((v * weight).sum(), x)[0] for v in (value, expected))
    assert torch.allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-15)


@ALL
def test_vmap_equals_a_loop_also_of_gradients(label: str) -> None:
    face, x = FACES[label], torch.stack([_inside(), _inside() * 0.5, 1 - _inside()])
    # torch's fused attention has no batching rule, and counts its dropout, even at 0, as random
    backend, options = (nullcontext(), {}) if face.twice else (sdpa_kernel(SDPBackend.MATH), {"randomness": "same"})
    derivative = torch.func.grad(lambda part: face.call(part).square().sum())
    with backend:
        for function in (face.call, derivative):
            expected = torch.stack([function(part) for part in x])
            assert torch.allclose(torch.func.vmap(function, **options)(x), expected, rtol=1e-10, atol=1e-15)


# --- shapes and strides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: _inside().t().contiguous().t(),
        lambda: torch.cat([_inside(), _inside()])[::2],
        lambda: _inside()[:1].expand(3, 4),
        lambda: _inside().flip(0)[1:],
    ],
    ids=["transposed", "strided", "expanded", "offset"],
)
@ALL
def test_strides_do_not_matter(label: str, make: Callable[[], Tensor]) -> None:
    x = make()
    assert torch.allclose(FACES[label].call(x), FACES[label].call(x.contiguous()), rtol=1e-13)


@ALL
def test_scalars_and_empty_tensors_have_an_answer_or_a_refusal(label: str) -> None:
    face = FACES[label]
    if face.scalar:
        value = face.call(torch.tensor(0.3))
        assert value.isfinite().all()
        assert not face.keeps_shape or value.shape == ()
    empty = face.call(torch.empty(0, 4, requires_grad=True))
    if face.name == "welford":
        assert empty.isnan()  # the mean of nothing, as torch's
    else:
        assert not empty.isnan().any()
    assert not face.keeps_shape or empty.shape == (0, 4)
    if face.width is None:
        empty = face.call(torch.empty(3, 0))
        assert not face.keeps_shape or empty.shape == (3, 0)
    else:
        with pytest.raises(UsageError, match=r"4"):
            face.call(torch.empty(3, 0))


@pytest.mark.parametrize("kind", REFUSED)
@ALL
def test_what_is_not_real_and_dense_is_refused_by_name(label: str, kind: str) -> None:
    face = FACES[label]
    if face.labels and kind in ("int64", "bool"):
        assert face.call(REFUSED[kind]()).isfinite()
        return
    with pytest.raises(UsageError, match=kind) as caught:
        face.call(REFUSED[kind]())
    assert str(caught.value).startswith(f"{face.name}: ")


# --- gradients of every kind -------------------------------------------------------------------------------


class _Writer:
    def __init__(self) -> None:
        self.written: list[str] = []

    def add_histogram(self, tag: str, values: Tensor, step: int) -> None:
        assert values.isfinite().all()
        self.written.append(tag)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.written.append(tag)


class _Holder(nn.Module):
    """Parameters whose gradients are of one kind, beside an ordinary one."""

    def __init__(self, parameter: Tensor, gradient: Tensor | None) -> None:
        super().__init__()
        self.ordinary = nn.Parameter(torch.ones(2, 3))
        self.ordinary.grad = torch.full((2, 3), 0.5)
        self.special = nn.Parameter(parameter)
        self.special.grad = gradient


def _sparse() -> tuple[Tensor, Tensor]:
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 3, 1])).sum().backward()
    assert table.weight.grad is not None
    return table.weight.detach(), table.weight.grad.coalesce()


KINDS: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
    "none": lambda: (torch.ones(2), None),
    "empty": lambda: (torch.ones(0, 3), torch.ones(0, 3)),
    "scalar": lambda: (torch.ones(()), torch.tensor(3.0)),
    "transposed": lambda: (torch.ones(4, 3), torch.arange(12.0).reshape(3, 4).t()),
    "float16": lambda: (torch.ones(3).half(), torch.tensor([300.0, 400.0, 0.0]).half()),
    "bfloat16": lambda: (torch.ones(3).bfloat16(), torch.tensor([3e30, 4e30, 0.0]).bfloat16()),
    "float64": lambda: (torch.ones(2).double(), torch.tensor([3e200, 4e200], dtype=torch.float64)),
    "complex": lambda: (torch.ones(2, dtype=torch.complex64), torch.tensor([3.0 + 4.0j, 0.0j])),
    "sparse": _sparse,
    "huge": lambda: (torch.ones(2), torch.tensor([3e38, 3e38])),
    "tiny": lambda: (torch.ones(2), torch.tensor([1e-44, 1e-40])),
}


def _norm(model: nn.Module) -> float:
    """The global norm, in exact arithmetic but for the last step."""
    values: list[float] = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            dense = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            values += (torch.view_as_real(dense) if dense.is_complex() else dense).double().flatten().tolist()
    return math.hypot(*values)


def _call(name: str, source: Any, model: nn.Module) -> Any:
    function = getattr(stability, name)
    if name == "gradient_histograms":
        return function(model, _Writer(), 0)
    if name == "analyze_gradient_flow":
        return function(model)
    return function(source)


@pytest.mark.filterwarnings("ignore:.*ComplexHalf.*:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_every_kind_are_read_alike(name: str, kind: str) -> None:
    parameter, gradient = KINDS[kind]()
    model = _Holder(parameter, gradient)
    before = _norm(model)
    result = _call(name, (p for p in model.parameters()), model)  # a generator, read once
    if name == "clip_gradients":
        assert result["grad_norm_before"] == pytest.approx(before, rel=1e-5)
        assert _norm(model) == pytest.approx(min(before, 1.0), rel=2e-3)
    elif name == "normalize_gradients":
        assert result["grad_norm_before"] == pytest.approx(before, rel=1e-5)
        assert _norm(model) == pytest.approx(1.0, rel=2e-3)
    elif name == "agc":
        assert result["grad_norm_before"] == pytest.approx(before, rel=1e-5)
        assert math.isfinite(_norm(model))
        assert model.ordinary.grad is not None
        assert model.ordinary.grad[0].norm() <= 0.0101 * model.ordinary[0].norm()
    elif name == "analyze_gradient_flow":
        assert result.total_norm == pytest.approx(before, rel=1e-5)
        assert not result.nonfinite
    elif name == "check_gradients":
        assert result["params_affected"] == []
    elif name == "gradient_histograms":
        assert not any(result.values())
    else:
        assert result["grad_norm_before"] == pytest.approx(before, rel=1e-5)
        assert _norm(model) == before  # the history is empty: nothing is clipped


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", GRADIENTS)
def test_one_bad_gradient_is_said_and_never_used_as_a_factor(name: str, bad: float) -> None:
    model = _Holder(torch.ones(3), torch.tensor([1.0, bad, 2.0]))
    assert model.ordinary.grad is not None
    theirs = copy.deepcopy(model)
    for ours, copied in zip(model.parameters(), theirs.parameters(), strict=True):
        assert ours.grad is not None
        copied.grad = ours.grad.clone()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    assert theirs.ordinary.grad is not None
    assert not (theirs.ordinary.grad == 0.5).any()  # negative control: the good gradient is lost
    if name == "check_gradients":
        with pytest.raises(NumericalError, match="special"):
            stability.check_gradients(model)
    else:
        result = _call(name, list(model.parameters()), model)
        said = result.nonfinite if name == "analyze_gradient_flow" else result["special"] if name == "gradient_histograms" else None
        assert said == (["special"] if name == "analyze_gradient_flow" else 1 if name == "gradient_histograms" else None)
        if said is None:
            assert not math.isfinite(result["grad_norm_before"])
            assert not result["clipped"]
    assert (model.ordinary.grad == 0.5).all()


# --- assertions --------------------------------------------------------------------------------------------

_CHECKS: dict[str, Callable[[Tensor], Tensor]] = {
    "assert_finite": stability.assert_finite,
    "assert_in_range": lambda x: stability.assert_in_range(x, -10.0, 10.0),
    "assert_normalized": lambda x: stability.assert_normalized(x),
}


@pytest.mark.parametrize("name", ASSERTIONS)
def test_assertions_return_their_argument_compile_and_name_what_is_wrong(name: str) -> None:
    check = _CHECKS[name]
    for dtype in FLOAT_DTYPES:
        x = torch.full((2, 4), 0.25, dtype=dtype)
        assert check(x) is x
        assert check(x[:0]).shape == (0, 4)
        x[1, 2] = math.nan
        with pytest.raises(NumericalError, match=r"first at \(1"):
            check(x)
        with stability.assertions(False):
            assert check(x) is x
    torch._dynamo.reset()
    good = torch.full((2, 4), 0.25)
    assert torch.equal(torch.compile(lambda v: check(v) * 2, fullgraph=True, backend="aot_eager")(good), good * 2)
    assert check(torch.ones(())).item() == 1
    if name == "assert_finite":
        assert check(torch.eye(2).to_sparse()).is_sparse  # stored values count
        assert check(torch.ones(2, dtype=torch.complex64)).is_complex()
        assert check(torch.ones(2, dtype=torch.int64)).sum() == 2
    else:
        with pytest.raises(UsageError, match=f"{name}.*complex64"):
            check(torch.ones(2, dtype=torch.complex64))
        with pytest.raises(UsageError, match=f"{name}.*sparse_coo"):
            check(torch.eye(2).to_sparse())
