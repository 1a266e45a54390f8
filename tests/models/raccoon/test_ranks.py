"""Two processes under gloo: the same steps on both, with and without DistributedDataParallel."""

from functools import partial

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from latent_drift.models.log_data import LogDataset
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.train_raccoon import train_raccoon_classifier

pytestmark = pytest.mark.xdist_group("two_ranks")


def _train(rank, wrapped):
    torch.manual_seed(0)
    model = RaccoonLogClassifier(40, 4)
    torch.manual_seed(100 + rank)
    records = []
    data = LogDataset(64, seed=rank)
    inner = model
    if rank == 1:  # one bad gradient on one rank must skip the step on both
        calls = iter(range(100))
        model.enc_mean.register_forward_hook(lambda module, inputs, output: output * float("nan") if next(calls) == 2 else None)
    trained = DistributedDataParallel(model, broadcast_buffers=False) if wrapped else model
    train_raccoon_classifier(trained, [data.batch(range(8 * i, 8 * i + 8)) for i in range(5)], 5, on_step=records.append)
    weights = torch.cat([p.detach().reshape(-1) for p in inner.parameters()])
    return weights, [r.skipped for r in records], int(inner.latent_test.global_step)


BODIES = {"training": partial(_train, wrapped=False), "training-wrapped": partial(_train, wrapped=True)}


@pytest.mark.parametrize("name", BODIES)
def test_ranks_take_the_same_steps_and_skip_together(name, on_two_ranks):
    (first, skips, step), (second, other_skips, other_step) = on_two_ranks[name]
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    assert skips == other_skips == [False, False, True, False, False]
    assert step == other_step == 5
