import string

import pytest
import torch

from latent_drift.models.log_alphabet import (
    LOG_CATEGORIES,
    NUM_LOG_CLASSES,
    decode_log,
    encode_log,
    log_char2idx,
    log_chars,
    log_idx2char,
    log_vocab_size,
)


def test_alphabet_is_the_published_one():
    assert "".join(log_chars) == "_" + string.ascii_uppercase + "!>?" + string.digits
    assert log_vocab_size == len(log_chars) == 40
    assert (list(LOG_CATEGORIES), NUM_LOG_CLASSES) == (["ERROR", "WARNING", "INFO", "DEBUG"], 4)
    assert all(log_idx2char[log_char2idx[c]] == c for c in log_chars)


def test_text_survives_the_round_trip_and_unknown_characters_become_padding():
    assert decode_log(encode_log("ERROR_42!")) == "ERROR_42!"
    assert encode_log("aA~").tolist() == [0, 1, 0]
    assert encode_log("").shape == (0,)
    assert encode_log("A").dtype == torch.long
    assert decode_log([1, 2]) == "AB"
    assert decode_log(torch.tensor([[1, 2], [3, 4]])) == "ABCD"
    assert decode_log(torch.tensor(3)) == "C"


def test_index_outside_the_alphabet_is_named():
    with pytest.raises(IndexError, match="index 40"):
        decode_log(torch.tensor([1, 40]))
