"""The public elementary functions follow the active config, also when compiled, and refuse by their own names."""

from __future__ import annotations

import pkgutil

import pytest
import torch

import latent_drift.stability as stability
from latent_drift.config.active import using
from latent_drift.errors import UsageError
from latent_drift.stability import StabilityConstants, get_eps
from tests.numerics.test_elementary import DTYPES, REFUSED

FUNCTIONS = {
    name: getattr(stability, name)
    for name in (
        "stable_exp",
        "stable_log",
        "stable_sqrt",
        "stable_sigmoid",
        "stable_softplus",
        "stable_logit",
        "stable_softmax",
        "stable_log_softmax",
        "log_sum_exp",
        "stable_norm",
        "stable_normalize",
    )
} | {"stable_divide": lambda x: stability.stable_divide(1.0, x)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_face_compiles_vmaps_and_keeps_dtype(name: str) -> None:
    torch._dynamo.reset()
    function = FUNCTIONS[name]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.rand(3, 4, dtype=torch.float64).to(dtype).requires_grad_()
        assert function(x).dtype == dtype
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), function(x), rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(compiled(x).sum(), x)[0], torch.autograd.grad(function(x).sum(), x)[0], rtol=1e-10, atol=1e-15)
    assert torch.allclose(torch.func.vmap(function)(x.detach()), torch.stack([function(r) for r in x.detach()]), rtol=1e-12)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_real_and_dense_is_refused_by_name(name: str, kind: str) -> None:
    with pytest.raises(UsageError, match=kind):
        FUNCTIONS[name](REFUSED[kind]())


@DTYPES
def test_eps_is_an_epsilon_in_its_dtype_where_1e6_is_not(dtype: torch.dtype) -> None:
    if dtype == torch.float16:
        assert (1 / torch.tensor(1e-6, dtype=dtype)).isinf()  # negative control
        assert torch.tensor(1e-8, dtype=dtype) == 0
    eps = torch.tensor(get_eps(dtype), dtype=dtype)
    assert eps >= torch.finfo(dtype).smallest_normal
    assert (1 / eps).isfinite()
    assert StabilityConstants.get_eps(dtype) == get_eps(dtype)


def test_constants_have_the_published_names_and_follow_the_config() -> None:
    names = "EPS_FLOAT32 EPS_FLOAT16 EPS_DIVISION EPS_LOG LOG_MIN LOG_MAX LOGVAR_MIN LOGVAR_MAX SCALE_MIN SCALE_MAX"
    for name in [*names.split(), "GRAD_CLIP_NORM", "GRAD_CLIP_VALUE", "ATTENTION_MASK_VALUE"]:
        assert isinstance(getattr(StabilityConstants, name), float), name
        assert name in dir(StabilityConstants)
    with pytest.raises(AttributeError, match="it has EPS_FLOAT32"):
        StabilityConstants.EPS_FLOAT8  # noqa: B018
    with using(gradient={"default_max_norm": 0.25}):
        assert StabilityConstants.GRAD_CLIP_NORM == 0.25
    assert StabilityConstants.GRAD_CLIP_NORM == 1.0


def test_the_config_decides_bounds_gradients_and_empty_rows() -> None:
    x = torch.tensor([30.0], requires_grad=True)
    with using(exp={"bound": 5.0, "gradient_outside": "zero"}, softmax={"empty_rows": "uniform"}):
        y = stability.stable_exp(x)
        assert y.item() == pytest.approx(148.41, rel=1e-4)
        assert torch.autograd.grad(y, x)[0].item() == 0
        assert stability.stable_softmax(torch.full((2,), -torch.inf)).tolist() == [0.5, 0.5]
    assert stability.stable_exp(x).item() > 1e12
    assert stability.stable_exp(x, max_val=1.0).item() == pytest.approx(2.71828, rel=1e-5)
    assert stability.stable_norm(torch.zeros(3), eps=0.5).item() == 0.5


def test_public_names_are_lazy_listed_and_all_there() -> None:
    for name in stability.__all__:
        assert getattr(stability, name) is not None
        assert name in dir(stability)
    assert sorted(stability.__all__) == stability.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stability.nothing  # noqa: B018
    modules = {module.name for module in pkgutil.iter_modules(stability.__path__)}
    assert not modules & set(stability.__all__)  # importing such a module would put it in the name's place
