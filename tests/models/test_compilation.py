"""Both models compile whole (`fullgraph=True`), once, without a warning, to the loss and gradients they have uncompiled."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.log_data import LogDataset
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.sequences import synthetic_sequences

MODELS = ["ode", "raccoon"]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _model(kind: str, legacy_compat: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if kind == "ode":
        return DeterministicLatentODE(30, 8, 16, 12, 8, legacy_compat=legacy_compat)
    return RaccoonLogClassifier(40, 4, latent_dim=8, hidden_dim=16, embed_dim=8, legacy_compat=legacy_compat)


def _batch(kind: str, seed: int = 0) -> tuple[Tensor, ...]:
    if kind == "ode":
        return (synthetic_sequences(3, torch.Generator().manual_seed(seed)).long()[:, :11],)
    return LogDataset(16, seq_len=20, seed=seed).batch(range(16))


def _loss_and_gradients(function: Any, model: nn.Module, batch: tuple[Tensor, ...], dtype: torch.dtype | None) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(4)
    with torch.autocast("cpu", dtype=dtype) if dtype else nullcontext():
        loss, _ = function(*batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_agreement(kind: str, backend: str, training: bool, dtype: torch.dtype | None, legacy_compat: bool = False, rtol: float = 1e-5) -> None:
    plain = _model(kind, legacy_compat).train(training)
    same = copy.deepcopy(plain)
    expected, gradients = _loss_and_gradients(plain, plain, _batch(kind), dtype)
    found, ours = _loss_and_gradients(torch.compile(same, fullgraph=True, backend=backend), same, _batch(kind), dtype)
    assert found == pytest.approx(expected, rel=rtol)
    assert ours.keys() == gradients.keys()
    assert len(gradients) >= 30
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=100 * rtol, atol=rtol * max(1.0, float(gradient.abs().max())), msg=lambda m, n=name: f"{n}: {m}"
        )
    assert torch.equal(same.latent_test.global_step, plain.latent_test.global_step)


@pytest.mark.parametrize("kind", MODELS)
def test_differentiated_ahead_of_time_it_agrees(kind: str) -> None:
    assert_agreement(kind, "aot_eager", True, None)


# Training in float32 is above; each mode and dtype is traced once.
@pytest.mark.parametrize(("training", "dtype"), [(False, torch.bfloat16), (True, torch.float16)], ids=["evaluation-bfloat16", "training-float16"])
@pytest.mark.parametrize("kind", MODELS)
def test_traced_whole_under_autocast_it_agrees(kind: str, training: bool, dtype: torch.dtype) -> None:
    assert_agreement(kind, "eager", training, dtype, rtol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_as_published_it_compiles_whole_too(kind: str) -> None:
    assert_agreement(kind, "eager", True, None, legacy_compat=True)


@pytest.mark.parametrize("kind", MODELS)
def test_steps_of_training_compile_once(kind: str) -> None:
    """What changes from step to step (weights, slices, batches, log-variances beyond their bound) is no reason to compile again."""
    model, counter = _model(kind), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for seed in range(4):
        loss, _ = compiled(*_batch(kind, seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert counter.frame_count == 1
    assert model.latent_test.global_step.item() == 4


def test_a_graph_break_is_an_error_here() -> None:
    """The control of `fullgraph`: a look at a value in the middle of a forward pass, as the published step took at its losses."""

    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        torch.compile(Looking(), fullgraph=True, backend="eager")(torch.ones(2))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own, of torch.jit
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler: inductor cannot build its kernels")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", MODELS)
def test_compiled_to_cpp_it_agrees(kind: str, training: bool) -> None:
    import torch._inductor.config

    with torch._inductor.config.patch(fallback_random=True):  # else its noise comes from a generator of its own
        assert_agreement(kind, "inductor", training, None, rtol=1e-4)
