"""A pin decides a run's numerics: the same pin gives the same bits, another pin says by field what differs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import instrument
from latent_drift.config import StabilityConfig, compare_saved, load


def train(config: StabilityConfig) -> tuple[list[Tensor], dict[str, object]]:
    """Parameters after a few steps of a small model whose gradients are far above any clipping norm, and what the run carries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with instrument.stable(config):
        for _ in range(5):
            optimizer.zero_grad()
            x = torch.randn(32, 8)
            ((model(x) - 100 * x.sum(1, keepdim=True)) ** 2).mean().backward()
            optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()], config.document()


def is_bitwise_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("profile", ["observe", "guard", "train", "strict"])
def test_two_runs_under_the_same_pin_are_bitwise_equal(profile: str) -> None:
    first, carried = train(load("1.0.0", profile=profile))
    second, _ = train(load(carried))
    assert is_bitwise_equal(first, second)
    assert compare_saved(carried, load("1.0.0", profile=profile)) is None


def test_a_run_under_another_pin_differs_and_says_by_field_in_what() -> None:
    other = load("1.0.0", gradient={"clip": {"max_norm": 0.5}})
    first, carried = train(load("1.0.0"))
    second, _ = train(other)
    assert not is_bitwise_equal(first, second)
    text = compare_saved(carried, other)
    assert text is not None
    assert text.splitlines()[1:] == ["  gradient.clip.max_norm: 1.0 -> 0.5"]
