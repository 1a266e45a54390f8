"""The characters of the synthetic sequences."""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from latent_drift.errors import UsageError

chars: Final = "_" + string.ascii_uppercase + "!>?"
"""Background, 26 letters, noise, end of the prompt's letter, start of the prompt: 30 characters."""

char2idx: Final = {character: index for index, character in enumerate(chars)}
idx2char: Final = dict(enumerate(chars))
vocab_size: Final = len(chars)


class UnknownCharacterError(UsageError, KeyError):
    """A character outside the alphabet; also a KeyError, as the plain dictionary look-up raises."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the message's repr


class UnknownTokenError(UsageError, IndexError):
    """A token index outside the vocabulary; also an IndexError, as an embedding's look-up raises."""


def encode(s: str) -> Tensor:
    """The indices of the characters of `s`: a long tensor of shape (len(s),).

    Raises:
        UnknownCharacterError: a character is not in `chars`; the message names it and where it stands.
    """
    for position, character in enumerate(s):
        if character not in char2idx:
            raise UnknownCharacterError(f"encode: {character!r} at position {position} is not one of the {vocab_size} characters {chars!r}")
    return torch.tensor([char2idx[character] for character in s], dtype=torch.long)


def decode(t: Tensor | Iterable[int]) -> str:
    """The text of a tensor (read in order, whatever its shape) or iterable of indices.

    Raises:
        UnknownTokenError: an index outside the alphabet; the message names it.
    """
    indices = t.reshape(-1).tolist() if isinstance(t, Tensor) else list(t)
    for index in indices:
        if index not in idx2char:
            raise UnknownTokenError(f"decode: token {index!r} is outside the alphabet of {vocab_size} characters (0 to {vocab_size - 1})")
    return "".join(idx2char[int(index)] for index in indices)
