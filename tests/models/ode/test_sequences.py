"""The synthetic data: its law, and that an index means something."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from latent_drift.errors import UsageError
from latent_drift.models.alphabet import decode
from latent_drift.models.sequences import SyntheticTargetDataset, synthetic_sequences
from tests.benchmarks.ode_legacy import NaiveSyntheticTargets
from tests.models.ode.well_formed import is_well_formed, noise_rate


def test_items_are_67_tokens_of_the_published_form() -> None:
    dataset = SyntheticTargetDataset(300, seed=0)
    assert len(dataset) == 300
    for i in range(300):
        item = dataset[i]
        assert item.dtype == torch.long
        assert item.shape == (67,)
        assert is_well_formed(decode(item)), decode(item)


def test_letters_places_and_noise_are_uniform() -> None:
    n = 20_000
    sequences = synthetic_sequences(n, torch.Generator().manual_seed(0)).long()
    letters = torch.bincount(sequences[:, 1], minlength=27)[1:27].double()
    assert (letters - n / 26).abs().max() < 5 * (n / 26) ** 0.5
    line = sequences[:, 3:]
    is_letter = line == sequences[:, 1:2]
    clean = is_letter.sum(1) == 8
    starts = torch.bincount(is_letter[clean].double().argmax(1), minlength=57).double()
    assert len(starts) == 57
    assert (starts - clean.sum() / 57).abs().max() < 5 * float(clean.sum() / 57) ** 0.5
    assert noise_rate(sequences[:2000]) == pytest.approx(1 / 16, abs=0.004)
    by_position = (line == 27).double().mean(0)
    assert (by_position - 1 / 16).abs().max() < 5 * (15 / 256 / n) ** 0.5


def test_the_same_index_gives_the_same_item() -> None:
    naive = NaiveSyntheticTargets(10)
    assert not torch.equal(naive[0], naive[0])  # the negative control
    naive[10**6]
    dataset = SyntheticTargetDataset(10)
    assert torch.equal(dataset[3], dataset[3])
    assert torch.equal(dataset[-1], dataset[9])
    assert torch.equal(dataset[torch.tensor(2)], dataset[2])
    for index in (10, -11, 10**6):
        with pytest.raises(IndexError, match=str(index)):
            dataset[index]
        with pytest.raises(IndexError, match=str(index)):
            dataset.__getitems__([0, index])
    assert len(list(dataset)) == 10  # iteration ends


def test_seed_and_global_seed_decide_the_data() -> None:
    assert torch.equal(SyntheticTargetDataset(5, seed=1)[4], SyntheticTargetDataset(5, seed=1)[4])
    assert not torch.equal(SyntheticTargetDataset(5, seed=1)[4], SyntheticTargetDataset(5, seed=2)[4])
    torch.manual_seed(0)
    first = SyntheticTargetDataset(5)[4]
    torch.manual_seed(0)
    assert torch.equal(SyntheticTargetDataset(5)[4], first)


def test_loader_walks_every_item_once_and_items_do_not_alias_the_store() -> None:
    dataset = SyntheticTargetDataset(100, seed=0)
    batches = list(DataLoader(dataset, batch_size=32))
    assert [tuple(b.shape) for b in batches] == [(32, 67)] * 3 + [(4, 67)]
    assert torch.equal(torch.cat(batches), torch.stack(list(dataset)))
    shuffled = torch.cat(list(DataLoader(dataset, batch_size=32, shuffle=True)))
    assert sorted(map(tuple, shuffled.tolist())) == sorted(tuple(item.tolist()) for item in dataset)
    item = dataset[0]
    item.fill_(0)
    assert dataset[0][0] != 0


def test_published_behaviour_draws_anew_and_takes_any_index() -> None:
    dataset = SyntheticTargetDataset(3, legacy_compat=True)
    assert not torch.equal(dataset[0], dataset[0])
    assert is_well_formed(decode(dataset[10**9]))
    assert next(iter(DataLoader(dataset, batch_size=3))).shape == (3, 67)


def test_sizes() -> None:
    assert len(SyntheticTargetDataset(0)) == 0
    with pytest.raises(UsageError, match="-1"):
        SyntheticTargetDataset(-1)
    assert (SyntheticTargetDataset.T, SyntheticTargetDataset.L, SyntheticTargetDataset.p_noise) == (64, 8, 1 / 16)
