"""The alphabet and its errors."""

from __future__ import annotations

import pytest
import torch

from latent_drift.models.alphabet import UnknownCharacterError, UnknownTokenError, char2idx, chars, decode, encode, idx2char, vocab_size
from latent_drift.models.embedding import TokenEmbedding


def test_thirty_characters_in_the_published_order() -> None:
    assert "".join(chars) == "_ABCDEFGHIJKLMNOPQRSTUVWXYZ!>?"
    assert vocab_size == len(chars) == 30
    assert [char2idx[c] for c in chars] == list(range(30))
    assert all(idx2char[char2idx[c]] == c for c in chars)


def test_decode_undoes_encode() -> None:
    text = "?Q>__QQ!QQQQ__"
    tokens = encode(text)
    assert tokens.dtype == torch.long
    assert tokens.shape == (len(text),)
    assert decode(tokens) == text
    assert decode(tokens.tolist()) == text
    assert encode("").shape == (0,)
    assert decode(encode("")) == ""


def test_unknown_character_is_named_with_its_place() -> None:
    with pytest.raises(UnknownCharacterError, match=r"'a' at position 2") as caught:
        encode("?Aa")
    assert isinstance(caught.value, KeyError)  # what the plain dictionary raises


def test_unknown_token_is_named() -> None:
    with pytest.raises(UnknownTokenError, match="30"):
        decode(torch.tensor([0, 30]))
    with pytest.raises(IndexError, match="-1"):
        decode([-1])


@pytest.mark.parametrize("bad", [30, -1, 1000])
def test_embedding_names_the_token_it_does_not_know(bad: int) -> None:
    embedding = TokenEmbedding(30, 4)
    plain = torch.nn.Embedding(30, 4)
    with pytest.raises(IndexError) as anonymous:
        plain(torch.tensor([[0, bad]]))
    assert str(bad) not in str(anonymous.value)  # the negative control
    with pytest.raises(UnknownTokenError, match=rf"token {bad} is outside the vocabulary of 30"):
        embedding(torch.tensor([[0, bad]]))
    with pytest.raises(ValueError, match="float32"):
        embedding(torch.zeros(1, 2))


def test_embedding_has_the_parameters_and_results_of_torch_s() -> None:
    torch.manual_seed(0)
    ours = TokenEmbedding(30, 4)
    torch.manual_seed(0)
    theirs = torch.nn.Embedding(30, 4)
    tokens = torch.randint(0, 30, (3, 5))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours(tokens), theirs(tokens))
    assert torch.equal(ours(tokens.to(torch.uint8)), theirs(tokens))
