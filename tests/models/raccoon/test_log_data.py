import time

import pytest
import torch
from torch.utils.data import DataLoader

from latent_drift.errors import UsageError
from latent_drift.models.log_alphabet import LOG_CATEGORIES, decode_log, log_vocab_size
from latent_drift.models.log_data import DRIFTED_FREQUENCIES, LOG_WORDS, LogDataset
from tests.benchmarks.raccoon_legacy import PlainLogDataset


def test_item_is_a_long_row_and_a_0d_long_label():
    tokens, label = LogDataset(3)[1]
    assert (tokens.shape, tokens.dtype) == ((50,), torch.long)
    assert (label.shape, label.dtype) == ((), torch.long)
    assert LOG_CATEGORIES[label] in LOG_WORDS


def test_same_index_gives_the_same_item_in_any_order_and_batch():
    data = LogDataset(10_000, seed=7)
    forward = [data[i] for i in (0, 4095, 4096, 9999)]
    other = LogDataset(10_000, seed=7)
    again = other.__getitems__([9999, 4096, 4095, 0])[::-1]
    for (a, la), (b, lb) in zip(forward, again, strict=True):
        assert torch.equal(a, b)
        assert la == lb
    plain = PlainLogDataset(3)
    assert not all(torch.equal(plain[0][0], plain[0][0]) for _ in range(5))  # the published form ignores the index


def test_seed_comes_from_torch_and_two_sets_differ():
    torch.manual_seed(3)
    first, second = LogDataset(100), LogDataset(100)
    torch.manual_seed(3)
    again = LogDataset(100)
    assert torch.equal(first.batch(range(100))[0], again.batch(range(100))[0])
    assert not torch.equal(first.batch(range(100))[0], second.batch(range(100))[0])


@pytest.mark.parametrize("index", [5, -6, 10**9])
def test_index_past_the_end_is_refused(index):
    with pytest.raises(IndexError, match=str(index)):
        LogDataset(5)[index]


def test_data_set_can_be_iterated_to_its_end():
    assert len(list(LogDataset(5))) == 5
    assert torch.equal(LogDataset(5, seed=1)[-1][0], LogDataset(5, seed=1)[4][0])


def test_classes_are_uniform_before_the_drift_and_as_stated_from_it_on():
    data = LogDataset(80_000, seed=0, drift_point=40_000)
    labels = data.batch(range(80_000))[1]
    for part, expected in ((labels[:40_000], (0.25,) * 4), (labels[40_000:], DRIFTED_FREQUENCIES)):
        frequencies = torch.bincount(part, minlength=4) / len(part)
        assert torch.allclose(frequencies, torch.tensor(expected), atol=4 * (0.25 / 40_000) ** 0.5)


def test_drift_point_zero_drifts_from_the_start_and_is_ignored_as_published():
    torch.manual_seed(0)
    drifted = LogDataset(20_000, drift_point=0, seed=1).batch(range(20_000))[1]
    published = torch.tensor([LogDataset(1, seq_len=1, drift_point=0, legacy_compat=True)[i][1] for i in range(3000)])
    assert abs((drifted == 0).double().mean() - 0.4) < 0.02
    assert abs((published == 0).double().mean() - 0.25) < 0.04


def test_one_character_in_ten_is_noise_padding_included():
    data = LogDataset(20_000, seed=2)
    tokens, _ = data.batch(range(20_000))
    noise = (tokens[:, 10:] != 0).double().mean()  # no word is longer than ten
    assert abs(noise - 0.1 * 39 / 40) < 0.002
    shown = tokens[:, 10:][tokens[:, 10:] != 0]
    assert torch.bincount(shown, minlength=log_vocab_size)[1:].min() > 0.85 * len(shown) / 39


def test_messages_hold_the_words_of_their_class():
    data = LogDataset(4000, seed=3)
    tokens, labels = data.batch(range(4000))
    whole = 0
    for row, label in zip(tokens, labels.tolist(), strict=True):
        text = decode_log(row)
        whole += any(text.startswith(word) for word in LOG_WORDS[LOG_CATEGORIES[label]])
    assert 0.4 < whole / 4000 < 0.75  # 0.9 to the power of the word's length, 0.35 to 0.66, plus shared beginnings


@pytest.mark.parametrize("seq_len", [0, 1, 3, 200])
def test_any_length_works_and_longer_words_are_cut(seq_len):
    assert LogDataset(10, seq_len=seq_len)[0][0].shape == (seq_len,)


@pytest.mark.parametrize("arguments", [{"n_samples": -1}, {"n_samples": 2.5}, {"n_samples": 1, "seq_len": -1}, {"n_samples": 1, "drift_point": -2}])
def test_sizes_that_cannot_be_are_refused(arguments):
    with pytest.raises(UsageError):
        LogDataset(**arguments)


def test_loader_gives_batches_with_workers_too():
    data = LogDataset(64, seed=5)
    batches = [tokens for tokens, _ in DataLoader(data, batch_size=16)]
    assert torch.equal(torch.cat(batches), data.batch(range(64))[0])


def test_legacy_items_follow_the_global_generator_and_accept_any_index():
    data = LogDataset(2, legacy_compat=True)
    torch.manual_seed(0)
    first = data[17][0]
    torch.manual_seed(0)
    assert torch.equal(first, data[99][0])
    assert len(data) == 2


def test_huge_set_costs_nothing_until_it_is_asked():
    start = time.process_time()
    tokens, _ = LogDataset(10**12, seed=1)[10**12 - 1]
    assert tokens.shape == (50,)
    assert time.process_time() - start < 5.0
