"""Models built on the meta device and filled afterwards, as sharded training builds them, are the models built at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from latent_drift.errors import UsageError
from latent_drift.models.coupling_flow import CouplingLayer
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.log_data import LogDataset
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.sequences import synthetic_sequences

BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "ode": (lambda: DeterministicLatentODE(30, 8, 16, 12, 4), (synthetic_sequences(2, torch.Generator().manual_seed(0)).long(),)),
    "raccoon": (lambda: RaccoonLogClassifier(40, 4, latent_dim=5, hidden_dim=8), LogDataset(4, seed=0).batch(range(4))),
}


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_model_made_without_storage_becomes_the_one_whose_state_it_loads(kind: str, assign: bool) -> None:
    build, batch = BUILDERS[kind]
    torch.manual_seed(0)
    made = build()
    with torch.device("meta"):
        empty = build()
    assert all(p.device.type == "meta" for p in empty.parameters())
    filled = empty if assign else empty.to_empty(device="cpu")
    filled.load_state_dict(made.state_dict(), strict=True, assign=assign)
    losses = []
    for model in (made, filled):
        torch.manual_seed(1)
        model.eval()
        loss, _ = model(*batch)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    for (name, a), b in zip(made.named_parameters(), filled.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name


def test_a_mask_of_the_wrong_size_is_refused_without_storage_too() -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=r"shape \(4,\).*got shape \(3,\)"):
        CouplingLayer(4, 8, torch.ones(3))
