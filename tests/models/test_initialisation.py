"""Audit rows I1 to I8: torch's layers initialise themselves, their units are alive, and the small gains that were proposed starve the first layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.log_data import LogDataset
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.sequences import synthetic_sequences

PROPOSED_GAIN = 0.1  # of a xavier initialisation over every linear layer


def _model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return DeterministicLatentODE(30, 64, 128, 64, 16) if kind == "ode" else RaccoonLogClassifier(40, 4)


def _batch(kind: str) -> tuple[Tensor, ...]:
    return (synthetic_sequences(8, torch.Generator().manual_seed(0)).long(),) if kind == "ode" else LogDataset(32, seed=0).batch(range(32))


def _first_layer(kind: str, model: nn.Module) -> nn.Linear:
    name = "encoder.ctx_encoder.in_proj" if kind == "ode" else "encoder.1"
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _own(kind: str, model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that the design leaves to torch: all but those of the vector fields, which start small on purpose."""
    chosen = ("p_ode",) if kind == "ode" else ("dynamics",)
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.startswith(chosen)}


@pytest.mark.parametrize("kind", ["ode", "raccoon"])
def test_layers_keep_the_initialisation_of_their_own(kind: str) -> None:
    layers = _own(kind, _model(kind))
    assert len(layers) >= 15
    for name, layer in layers.items():
        bound = 1 / math.sqrt(layer.in_features)
        largest = float(layer.weight.detach().abs().max())
        assert 0.9 * bound < largest <= bound, name
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name
        assert layer.bias.detach().any(), name


@pytest.mark.parametrize("kind", ["ode", "raccoon"])
def test_proposed_gains_starve_the_first_layer(kind: str) -> None:
    def gradient(gain: float | None) -> float:
        model = _model(kind)
        if gain is not None:
            for layer in _own(kind, model).values():
                nn.init.xavier_uniform_(layer.weight, gain=gain)
                nn.init.zeros_(layer.bias)
        torch.manual_seed(1)
        model(*_batch(kind))[0].backward()
        grad = _first_layer(kind, model).weight.grad
        assert grad is not None
        return float(grad.norm())

    assert gradient(None) > 7.5 * gradient(PROPOSED_GAIN)


@pytest.mark.parametrize("kind", ["ode", "raccoon"])
def test_units_are_alive_at_the_start(kind: str) -> None:
    model = _model(kind)
    seen: dict[str, Tensor] = {}
    names = [name for name in _own(kind, model) if name.endswith(("ffn_fc1", "encoder.1", "encoder.3", "classifier.0"))]
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda module, inputs, out, name=name: seen.__setitem__(name, out.detach().flatten(0, -2)))
    model(*((torch.randint(30, (32, 67)),) if kind == "ode" else _batch(kind)))
    assert set(seen) == set(names)
    for name, raw in seen.items():
        if kind == "ode":  # ReLU: open for half of all inputs, and hardly a unit open for none
            assert 0.4 < float((raw > 0).double().mean()) < 0.6, name
            assert int((~(raw > 0).any(0)).sum()) <= 3, name
        else:  # SiLU: an output that is not one number for all inputs
            assert bool((raw.std(0) > 0.01).all()), name
