"""float32 products stand in for the float16 ones that this kind of processor emulates in scalar code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latent_drift.models import float16_products as module
from latent_drift.models.attention import TransformerBlock
from latent_drift.models.float16_products import float16_products
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sequences import synthetic_sequences
from latent_drift.models.train_ode import train_ode

PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: F.linear(x, w),
    "matmul": lambda x, w: torch.matmul(x, w.mT),
    "operator": lambda x, w: x @ w.mT,
    "method": lambda x, w: x.matmul(w.mT),
    "attention": lambda x, w: F.scaled_dot_product_attention(x[None, None], w[None, None], w[None, None], is_causal=True),
}
ULP = 2.0**-10  # of float16, relative


@pytest.fixture(autouse=True)
def _without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_float16_products", lambda: False)


def _operands(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 32, generator=generator) * scale
    return x.requires_grad_(), torch.randn(24, 32, generator=generator).requires_grad_()


def _product_and_gradients(product: Callable[[Tensor, Tensor], Tensor], substituted: bool, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    x, w = _operands(scale)
    with torch.autocast("cpu", dtype=torch.float16), float16_products("cpu", torch.float16) if substituted else nullcontext():
        y = product(x, w)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y.float() * weights).sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    return y.detach(), x.grad, w.grad


@pytest.mark.parametrize("name", PRODUCTS)
def test_values_and_gradients_are_those_of_float16_autocast(name: str) -> None:
    ours, theirs = _product_and_gradients(PRODUCTS[name], True), _product_and_gradients(PRODUCTS[name], False)
    assert ours[0].dtype == theirs[0].dtype == torch.float16
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=4 * ULP, atol=4 * ULP * float(b.abs().max()))


@pytest.mark.parametrize("name", PRODUCTS)
def test_values_are_rounded_to_float16(name: str) -> None:
    """The control: without autocast's rounding the same call differs from its float16 form by far more than float32 rounding."""
    x, w = (v.detach() for v in _operands())
    y = _product_and_gradients(PRODUCTS[name], True)[0]
    exact = PRODUCTS[name](x.double(), w.double())
    difference = float((y.double() - exact).abs().max())
    assert 1e-5 < difference < 0.05


def test_what_overflows_float16_overflows_here_too() -> None:
    ours, theirs = (_product_and_gradients(PRODUCTS["linear"], substituted, scale=1.5e4)[0] for substituted in (True, False))
    assert bool(ours.isinf().any())
    assert not bool(ours.isnan().any())
    assert torch.equal(ours.isinf(), theirs.isinf())


def test_a_product_is_formed_in_float32_and_rounded_once() -> None:
    x = torch.full((1, 4096), 1.0)
    w = torch.full((1, 4096), 0.75)
    naive = torch.zeros((), dtype=torch.float16)
    for _ in range(4096):
        naive = naive + torch.tensor(0.75, dtype=torch.float16)
    assert float(naive) < 3072  # a sum kept in float16 stops growing: its unit at 2048 is 2
    with torch.autocast("cpu", dtype=torch.float16), float16_products("cpu", torch.float16):
        assert float(F.linear(x, w)) == 3072


def test_float64_and_what_is_outside_autocast_is_left_alone() -> None:
    x, w = (v.detach() for v in _operands())
    with float16_products("cpu", torch.float16):
        assert torch.equal(F.linear(x, w), x @ w.mT)
        with torch.autocast("cpu", dtype=torch.float16):
            assert F.linear(x.double(), w.double()).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.linear(x, w).dtype == torch.bfloat16


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float16), ("cpu", torch.bfloat16), ("cpu", None)])
def test_other_devices_and_precisions_get_no_substitute(device: str, dtype: torch.dtype | None) -> None:
    assert isinstance(float16_products(device, dtype), nullcontext)


def test_a_processor_with_float16_units_gets_no_substitute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_float16_products", lambda: True)
    assert isinstance(float16_products("cpu", torch.float16), nullcontext)


def test_training_gives_the_same_with_products_of_either_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = synthetic_sequences(3, torch.Generator().manual_seed(0)).long()[:, :20]

    def losses(has_units: bool) -> list[float]:
        monkeypatch.setattr(module, "has_float16_products", lambda: has_units)
        torch.manual_seed(0)
        model = DeterministicLatentODE(30, 8, 16, 12, 4)
        return [step.loss for step in train_ode(model, [tokens], 3, precision="float16", sample_every=0).steps]

    ours, fallback = losses(False), losses(True)
    assert ours == pytest.approx(fallback, rel=4 * ULP)
    assert ours[-1] < ours[0]


def test_a_block_compiled_whole_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_float16_products", lambda: False)
    torch.manual_seed(0)
    block = TransformerBlock(8, 4, 16, 2, True, 0.0)
    x = torch.randn(2, 5, 8)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.float16), float16_products("cpu", torch.float16):
        expected, found = block(x), compiled(x)
    torch.testing.assert_close(found, expected, rtol=4 * ULP, atol=4 * ULP)
