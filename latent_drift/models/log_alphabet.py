"""The characters of log messages, and the categories they are sorted into."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from latent_drift.models.alphabet import chars

LOG_CATEGORIES = ["ERROR", "WARNING", "INFO", "DEBUG"]
"""Names of the classes, in label order."""

NUM_LOG_CLASSES = len(LOG_CATEGORIES)

log_chars = "".join(chars) + "0123456789"
"""The model's own alphabet and the digits: 40 characters, the first of which is the padding `_`."""

log_char2idx = {character: index for index, character in enumerate(log_chars)}
log_idx2char = dict(enumerate(log_chars))
log_vocab_size = len(log_chars)


def encode_log(s: str) -> Tensor:
    """The indices of the characters of `s`: a long tensor of shape (len(s),). A character outside the alphabet becomes 0 (`_`)."""
    return torch.tensor([log_char2idx.get(character, 0) for character in s], dtype=torch.long)


def decode_log(t: Tensor | Iterable[int]) -> str:
    """The text of a tensor (read in order, whatever its shape) or iterable of indices.

    Raises:
        IndexError: an index outside the alphabet; the message names it.
    """
    indices = t.reshape(-1).tolist() if isinstance(t, Tensor) else [int(i) for i in t]
    unknown = [i for i in indices if i not in log_idx2char]
    if unknown:
        raise IndexError(f"decode_log: index {unknown[0]} is outside the alphabet of {log_vocab_size} characters (0 to {log_vocab_size - 1})")
    return "".join(log_idx2char[i] for i in indices)
