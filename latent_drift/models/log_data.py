"""Synthetic log messages: a word of the class, padding, and noise, with a drift of the class frequencies."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Final, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from latent_drift.errors import UsageError
from latent_drift.models.log_alphabet import LOG_CATEGORIES, NUM_LOG_CLASSES, encode_log, log_vocab_size

LOG_WORDS: Final = {
    "ERROR": ("ERROR", "FAIL", "CRASH", "EXCEPTION", "NULL"),
    "WARNING": ("WARN", "DEPRECATED", "SLOW", "RETRY"),
    "INFO": ("INFO", "START", "STOP", "READY"),
    "DEBUG": ("DEBUG", "TRACE", "VERBOSE"),
}
"""The words that make a message one of its class."""

DRIFTED_FREQUENCIES: Final = (0.4, 0.3, 0.2, 0.1)
"""Class frequencies from the drift point on, in the order of `LOG_CATEGORIES`; uniform before it."""

NOISE_PROBABILITY: Final = 0.1
"""Probability with which a character, padding included, is replaced by a random one of the alphabet."""

_BLOCK: Final = 4096  # items generated at once: a few milliseconds of work and 200 kB, so that one item of a huge set stays cheap


class LogDataset(Dataset[tuple[Tensor, Tensor]]):
    """Messages of `seq_len` characters with their class.

    An item is (tokens: long (seq_len,), label: long ()), and a function of the seed and the index alone: the same index gives the
    same item in any order, process and batch. From index `drift_point` on the classes are drawn with `DRIFTED_FREQUENCIES`.

    Args:
        n_samples: number of messages.
        seq_len: characters in a message; longer words are cut.
        drift_point: first drifted index; None for no drift, 0 for drift from the start.
        seed: of the messages; drawn from torch's global generator if None, so `torch.manual_seed` decides and two data sets differ.
        legacy_compat: as published: items are drawn from torch's global generator at every access, whatever the index, any index
            is accepted, `drift_point=0` means none, and drift begins after the index `drift_point`.

    Raises:
        UsageError: a size that is negative or no integer.
        IndexError: an index past the end.

    *Numerics*: messages are generated in blocks with a counter-based generator keyed by (seed, block), kept as bytes.
    """

    def __init__(
        self,
        n_samples: int,
        seq_len: int = 50,
        drift_point: int | None = None,
        *,
        seed: int | None = None,
        legacy_compat: bool = False,
    ) -> None:
        self.n_samples = _size(n_samples, "n_samples")
        self.seq_len = _size(seq_len, "seq_len")
        self.drift_point = None if drift_point is None else _size(drift_point, "drift_point")
        self.legacy_compat = legacy_compat
        if seed is None and not legacy_compat:
            seed = int(torch.randint(2**63 - 1, ()).item())
        self.seed = seed
        self._words, self._words_of, self._first_word = _word_table(self.seq_len)
        self._blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, idx: SupportsIndex) -> tuple[Tensor, Tensor]:
        if self.legacy_compat:
            return self._legacy_item(operator.index(idx))
        tokens, labels = self.batch([idx])
        return tokens[0], labels[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[tuple[Tensor, Tensor]]:
        """The items of a batch: what a DataLoader asks for."""
        if self.legacy_compat:
            return [self._legacy_item(operator.index(i)) for i in indices]
        tokens, labels = self.batch(indices)
        return list(zip(tokens.unbind(), labels.unbind(), strict=True))

    def batch(self, indices: Sequence[SupportsIndex]) -> tuple[Tensor, Tensor]:
        """Tokens (len(indices), seq_len) and labels (len(indices),) of several items, both long, in the order asked for."""
        positions = [self._position(i) for i in indices]
        blocks = {p // _BLOCK for p in positions}
        if len(blocks) == 1:
            block = blocks.pop()
            tokens, labels = self._block(block)
            chosen = torch.tensor([p - block * _BLOCK for p in positions])
            return tokens[chosen].long(), labels[chosen].long()
        rows = torch.tensor(positions, dtype=torch.long)
        owner = torch.div(rows, _BLOCK, rounding_mode="floor")
        out_tokens = torch.empty(len(positions), self.seq_len, dtype=torch.long)
        out_labels = torch.empty(len(positions), dtype=torch.long)
        for block in blocks:
            tokens, labels = self._block(block)
            here = (owner == block).nonzero().squeeze(1)
            local = rows[here] - block * _BLOCK
            out_tokens[here] = tokens[local].long()
            out_labels[here] = labels[local].long()
        return out_tokens, out_labels

    def _position(self, idx: SupportsIndex) -> int:
        position = operator.index(idx)
        if not -self.n_samples <= position < self.n_samples:
            raise IndexError(f"LogDataset: index {position} is outside a data set of {self.n_samples} messages")
        return position + self.n_samples if position < 0 else position

    def _block(self, block: int) -> tuple[Tensor, Tensor]:
        made = self._blocks.get(block)
        if made is None:
            made = self._blocks[block] = self._generate(block)
        return made

    def _generate(self, block: int) -> tuple[Tensor, Tensor]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy=self.seed, spawn_key=(block,))))
        start, shape = block * _BLOCK, (_BLOCK, self.seq_len)
        uniform = rng.random(_BLOCK)
        labels = (uniform * NUM_LOG_CLASSES).astype(np.int64)
        if self.drift_point is not None and start + _BLOCK > self.drift_point:
            # the last edge is beyond 1, so that rounding of the cumulated sum can produce no fifth class
            edges = np.append(np.cumsum(DRIFTED_FREQUENCIES)[:-1], 2.0)
            drifted = np.arange(start, start + _BLOCK) >= self.drift_point
            labels = np.where(drifted, np.searchsorted(edges, uniform, side="right"), labels)
        word = self._first_word[labels] + (rng.random(_BLOCK) * self._words_of[labels]).astype(np.int64)
        noisy = rng.random(shape, dtype=np.float32) < NOISE_PROBABILITY
        noise = rng.integers(log_vocab_size, size=shape, dtype=np.uint8)
        tokens = np.where(noisy, noise, self._words[word])
        kept = min(_BLOCK, self.n_samples - start)
        return torch.from_numpy(tokens[:kept]), torch.from_numpy(labels[:kept].astype(np.uint8))

    def _legacy_item(self, idx: int) -> tuple[Tensor, Tensor]:
        if self.drift_point and idx > self.drift_point:
            label = int(torch.multinomial(torch.tensor(DRIFTED_FREQUENCIES), 1).item())
        else:
            label = int(torch.randint(NUM_LOG_CLASSES, (1,)).item())
        word = int(torch.randint(int(self._words_of[label]), (1,)).item())
        tokens = torch.from_numpy(self._words[self._first_word[label] + word]).long()
        for position in range(self.seq_len):
            if torch.rand(1).item() < NOISE_PROBABILITY:
                tokens[position] = torch.randint(log_vocab_size, (1,)).item()
        return tokens, torch.tensor(label)


def _size(value: SupportsIndex, name: str) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        raise UsageError(f"LogDataset: {name} must be an integer, got {value!r}") from None
    if size < 0:
        raise UsageError(f"LogDataset: {name} must not be negative, got {size}")
    return size


def _word_table(seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All words as padded rows (words, seq_len), the number of words of each class, and the row of each class's first word."""
    words = [LOG_WORDS[category] for category in LOG_CATEGORIES]
    rows = [encode_log(word[:seq_len].ljust(seq_len, "_")).numpy() for group in words for word in group]
    counts = np.array([len(group) for group in words])
    return np.stack(rows).astype(np.uint8), counts, np.cumsum(counts) - counts
