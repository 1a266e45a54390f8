"""logsumexp, softmax, norms: torch's results where torch is defined, a defined value and gradient where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.numerics import reductions
from tests.numerics.test_elementary import DTYPES, REFUSED
from tests.numerics.ulp import spacing, ulps

INF = math.inf
ALL: dict[str, Callable[..., Tensor]] = {
    "logsumexp": reductions.logsumexp,
    "softmax": reductions.softmax,
    "log_softmax": reductions.log_softmax,
    "norm": lambda x, dim=-1: reductions.norm(x, dim=dim),
    "normalize": reductions.normalize,
}


def _rows(dtype: torch.dtype, scale: float = 4.0) -> Tensor:
    return (torch.randn(64, 33, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale).to(dtype)


def _hard_rows(dtype: torch.dtype) -> Tensor:
    """Rows that torch leaves undefined, and one ordinary row with a -inf in it."""
    return torch.tensor([[-INF, -INF, -INF], [INF, 1.0, 2.0], [INF, -INF, INF], [1.0, -INF, 3.0]], dtype=dtype)


# --- accuracy ----------------------------------------------------------------------------------------------


@DTYPES
def test_softmax_and_its_gradient_stay_within_the_stated_ulp(dtype: torch.dtype) -> None:
    x = _rows(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    exact = torch.softmax(wide, -1)
    value = reductions.softmax(x)
    normal = exact.detach() >= torch.finfo(dtype).tiny
    distance = wide.detach().amax(-1, keepdim=True) - wide.detach()  # x - max is rounded, and exp turns that into a relative error
    assert (ulps(value.detach(), exact.detach()) <= 4 + distance)[normal].all()
    weight = torch.linspace(-1, 1, 33, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((value * weight.to(dtype)).sum(), x)
    (expected,) = torch.autograd.grad((exact * weight).sum(), wide)
    bound = 8 * torch.finfo(dtype).eps * exact.detach().amax(-1, keepdim=True)
    assert ((gradient.double() - expected).abs() <= bound).all()


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logsumexp_and_log_softmax_errors_are_below_two_ulp_of_the_largest_magnitude(dtype: torch.dtype, scale: float) -> None:
    x = _rows(dtype, scale)
    wide = x.double()
    total = torch.logsumexp(wide, -1)
    unit = spacing(torch.maximum(wide.abs().amax(-1), total.abs()), dtype)
    assert ((reductions.logsumexp(x).double() - total).abs() <= 2 * unit).all()
    exact = torch.log_softmax(wide, -1)
    unit = spacing(torch.maximum(wide.abs().amax(-1, keepdim=True), exact.abs()), dtype)
    assert ((reductions.log_softmax(x).double() - exact).abs() <= 2 * unit).all()


def test_logsumexp_of_a_long_float16_row_is_inf_in_torch_and_right_here() -> None:
    x = torch.zeros(70_000, dtype=torch.float16)
    assert torch.logsumexp(x, 0).isinf()  # negative control: the sum, 70000, is rounded to float16
    assert reductions.logsumexp(x, 0).item() == pytest.approx(math.log(70_000), rel=1e-3)


@DTYPES
@pytest.mark.parametrize("power", [-40, 0, 40], ids=["tiny", "ordinary", "huge"])
def test_norm_and_normalize_stay_within_the_stated_ulp_at_any_scale(dtype: torch.dtype, power: int) -> None:
    info = torch.finfo(dtype)
    reach = {-40: math.log2(info.tiny) / 2 - 4, 0: 0, 40: math.log2(info.max) - 7}[power]
    x = (_rows(dtype, 1.0).double() * 2.0**reach).to(dtype).requires_grad_()
    with torch.no_grad():
        unit = x.double() / 2.0**reach  # exact: a power of two
        length = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    max_ulp = 2 + math.log2(33)
    value = reductions.norm(x, dim=-1, keepdim=True)
    assert ulps(value.detach(), length * 2.0**reach).max() <= max_ulp
    (gradient,) = torch.autograd.grad(value.sum(), x)
    direction = (unit / length).detach()
    assert ((gradient.double() - direction).abs() <= 8 * info.eps * direction.abs().clamp(min=info.tiny)).all()
    assert ((reductions.normalize(x).detach().double() - direction).abs() <= 8 * info.eps * direction.abs() + info.tiny).all()


def test_naive_norm_overflows_in_float16_from_256_and_vanishes_in_float32() -> None:
    x = torch.tensor([300.0, 400.0], dtype=torch.float16)
    assert (x * x).sum().sqrt().isinf()
    assert reductions.norm(x).item() == 500
    y = torch.tensor([3e-25, 4e-25])
    assert (y * y).sum().sqrt() == 0
    assert F.normalize(y, dim=0).abs().max() < 1e-10
    assert reductions.norm(y).item() == pytest.approx(5e-25, rel=1e-6)
    assert reductions.normalize(y).tolist() == pytest.approx([0.6, 0.8], rel=1e-6)
    z = torch.tensor([3e38, 1e38], dtype=torch.float32)
    assert reductions.norm(z).item() == pytest.approx(math.hypot(3e38, 1e38), rel=1e-6)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, INF, -INF, 0.0, -1.0])
def test_norm_of_every_order_is_torchs(p: float) -> None:
    x = _rows(torch.float64)
    for dim in (None, 0, -1, (0, 1)):
        for keepdim in (False, True):
            ours = reductions.norm(x, p, dim, keepdim)
            theirs = torch.linalg.vector_norm(x, p, dim, keepdim)
            assert ours.shape == theirs.shape
            assert torch.allclose(ours, theirs, rtol=1e-13, atol=0)


# --- rows without an answer --------------------------------------------------------------------------------


@DTYPES
def test_rows_torch_leaves_undefined_have_values_and_zero_gradients(dtype: torch.dtype) -> None:
    x = _hard_rows(dtype).requires_grad_()
    assert torch.softmax(x, -1)[:3].isnan().any(-1).all()  # negative control
    (naive,) = torch.autograd.grad(torch.logsumexp(x, -1).sum(), x)
    assert naive[:3].isnan().any(-1).all()

    value = reductions.softmax(x)
    (gradient,) = torch.autograd.grad((value * torch.tensor([1, 2, 3], dtype=dtype)).sum(), x, create_graph=True)
    assert value[:3].tolist() == [[0, 0, 0], [1, 0, 0], [0.5, 0, 0.5]]
    assert value[3].sum().item() == pytest.approx(1, abs=float(torch.finfo(dtype).eps))
    assert (gradient[:3] == 0).all()
    assert (gradient[3][[0, 2]] != 0).all()
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.isfinite().all()

    total = reductions.logsumexp(x)
    (gradient,) = torch.autograd.grad(total.sum(), x)
    assert total[:3].tolist() == [-INF, INF, INF]
    assert (gradient[:3] == 0).all()
    assert gradient[3].sum().item() == pytest.approx(1, abs=4 * float(torch.finfo(dtype).eps))

    log = reductions.log_softmax(x)
    (gradient,) = torch.autograd.grad(log[torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 0, 2])].sum(), x)
    assert log[0].tolist() == [-INF] * 3
    assert torch.equal(log[1:3].exp(), value[1:3].detach()) or torch.allclose(log[1:3].exp(), value[1:3], rtol=4e-2)
    assert gradient.isfinite().all()


def test_a_full_mask_of_minus_1e9_spreads_over_forbidden_keys_and_ours_does_not() -> None:
    scores = torch.zeros(1, 3)
    with pytest.raises(RuntimeError):
        scores.half().masked_fill(torch.ones(1, 3, dtype=torch.bool), -1e9)
    assert torch.softmax(scores.masked_fill(torch.ones(1, 3, dtype=torch.bool), -1e9), -1).tolist() == [[pytest.approx(1 / 3)] * 3]
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert reductions.softmax(scores, where=nothing).tolist() == [[0, 0, 0]]
    assert reductions.softmax(scores.half(), where=nothing).tolist() == [[0, 0, 0]]
    assert reductions.softmax(scores, where=nothing, empty_rows="uniform").tolist() == [[pytest.approx(1 / 3)] * 3]
    assert reductions.softmax(scores, where=nothing, empty_rows="nan").isnan().all()
    with pytest.raises(UsageError, match="boolean"):
        reductions.softmax(scores, where=torch.zeros(1, 3))


def test_an_epsilon_after_the_sum_changes_every_probability() -> None:
    x = _rows(torch.float64)
    e = torch.exp(x - x.amax(-1, keepdim=True))
    with_epsilon = e / (e.sum(-1, keepdim=True) + 1e-6)
    assert (with_epsilon.sum(-1) - 1).abs().max() > 1e-7  # negative control
    assert (reductions.softmax(x).sum(-1) - 1).abs().max() < 1e-15 * 4


@DTYPES
def test_nan_rows_stay_nan_and_touch_no_other_row(dtype: torch.dtype) -> None:
    x = torch.tensor([[math.nan, 1.0], [1.0, 2.0], [math.nan, -INF]], dtype=dtype)
    for name, function in ALL.items():
        result = function(x).reshape(3, -1)
        assert result[0].isnan().all(), name
        assert result[1].isfinite().all(), name
        assert result[2].isnan().any(), name


def test_empty_dimension_and_empty_batch() -> None:
    assert reductions.logsumexp(torch.empty(2, 0)).tolist() == [-INF, -INF]
    assert reductions.logsumexp(torch.empty(2, 0), keepdim=True).shape == (2, 1)
    for name in ("softmax", "log_softmax", "normalize"):
        assert ALL[name](torch.empty(2, 0)).shape == (2, 0), name
        assert ALL[name](torch.empty(0, 3)).shape == (0, 3), name
    assert reductions.norm(torch.empty(0)).item() == 0
    assert reductions.norm(torch.empty(0, 3), dim=-1).shape == (0,)


def test_scalars_are_one_element_rows() -> None:
    x = torch.tensor(-3.0)
    assert reductions.softmax(x).item() == 1
    assert reductions.log_softmax(x).item() == 0
    assert reductions.logsumexp(x).item() == -3
    assert reductions.norm(x).item() == 3
    assert reductions.normalize(x).item() == -1


@DTYPES
def test_norm_and_normalize_at_the_zero_vector(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    (naive,) = torch.autograd.grad((x * x).sum(-1).sqrt().sum(), x)
    assert naive.isnan().all()  # negative control
    (gradient,) = torch.autograd.grad(reductions.norm(x, dim=-1).sum(), x, create_graph=True)
    assert (gradient == 0).all()
    unit = reductions.normalize(x, floor=2.0**-10)
    (gradient,) = torch.autograd.grad(unit.sum(), x)
    assert (unit == 0).all()
    assert (gradient == 1024).all()


def test_norm_with_an_infinite_entry_is_infinite_with_zero_gradient() -> None:
    x = torch.tensor([INF, 1.0], requires_grad=True)
    value = reductions.norm(x)
    assert value.item() == INF
    assert torch.autograd.grad(value, x)[0].tolist() == [0, 0]
    assert reductions.normalize(x).isnan().all()


# --- derivatives, compilation, vmap, dims ------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_differentiates_twice(name: str) -> None:
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(ALL[name], x)
    assert torch.autograd.gradgradcheck(ALL[name], x)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(name: str, backend: str) -> None:
    torch._dynamo.reset()
    x = torch.cat([_hard_rows(torch.float32), torch.randn(2, 3)]).requires_grad_()
    compiled = torch.compile(ALL[name], fullgraph=True, backend=backend)
    assert torch.equal(compiled(x).nan_to_num(nan=7.0), ALL[name](x).nan_to_num(nan=7.0))
    y = x.detach()[-2:].requires_grad_()
    assert torch.allclose(torch.autograd.grad(compiled(y)[:, None].sum(), y)[0], torch.autograd.grad(ALL[name](y)[:, None].sum(), y)[0], atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_vmap_equals_a_loop(name: str) -> None:
    x = torch.randn(3, 4, 5)
    assert torch.allclose(torch.func.vmap(ALL[name])(x), torch.stack([ALL[name](m) for m in x]), rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dim", [0, 1, -1, -3])
def test_dim_is_torchs_and_strides_do_not_matter(name: str, dim: int) -> None:
    x = torch.randn(4, 5, 6).transpose(0, 2)[::2]
    moved = ALL[name](x.movedim(dim, -1).contiguous())
    result = ALL[name](x, dim=dim)
    assert torch.allclose(result if result.dim() < 3 else result.movedim(dim, -1), moved, rtol=1e-6)


def test_several_dims_and_keepdim() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.allclose(reductions.logsumexp(x, (0, 2)), torch.logsumexp(x, (0, 2)))
    assert reductions.logsumexp(x, (0, 2), keepdim=True).shape == (1, 3, 1)
    with pytest.raises(IndexError, match="dim 3 is out of range"):
        reductions.logsumexp(x, 3)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ALL)
def test_what_is_not_real_and_dense_is_refused_by_name(name: str, kind: str) -> None:
    with pytest.raises(UsageError, match=kind):
        ALL[name](REFUSED[kind]())
