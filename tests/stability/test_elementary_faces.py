"""The public constants and functions follow the active config; the public names are lazy."""

from __future__ import annotations

import pkgutil

import pytest
import torch

import latent_drift.stability as stability
from latent_drift.config.active import using
from latent_drift.stability import StabilityConstants, get_eps
from tests.numerics.test_elementary import DTYPES


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
        assert getattr(StabilityConstants(), name) == getattr(StabilityConstants, name)
    with pytest.raises(AttributeError, match="it has EPS_FLOAT32"):
        StabilityConstants.EPS_FLOAT8  # noqa: B018
    with using(gradient={"default_max_norm": 0.25}):
        assert StabilityConstants.GRAD_CLIP_NORM == 0.25
    assert StabilityConstants.GRAD_CLIP_NORM == 1.0


def test_under_0_9_0_every_constant_has_its_published_value() -> None:
    published = {
        "EPS_FLOAT32": 1e-8,
        "EPS_FLOAT16": 1e-4,
        "EPS_DIVISION": 1e-6,
        "EPS_LOG": 1e-7,
        "LOG_MIN": -20.0,
        "LOG_MAX": 20.0,
        "LOGVAR_MIN": -10.0,
        "LOGVAR_MAX": 10.0,
        "SCALE_MIN": 1e-3,
        "SCALE_MAX": 100.0,
        "GRAD_CLIP_NORM": 1.0,
        "GRAD_CLIP_VALUE": 10.0,
        "ATTENTION_MASK_VALUE": -1e9,
    }
    with using("0.9.0"):
        assert {name: getattr(StabilityConstants, name) for name in published} == published
    with using("0.9.0", precision={"float16": {"division_eps": 0.01}}):
        assert StabilityConstants.EPS_FLOAT16 == 0.01  # what is overridden is followed


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
