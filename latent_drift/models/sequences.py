"""Synthetic target sequences: a prompt that names a letter, and a noisy line with one block of it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Final, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latent_drift.errors import UsageError
from latent_drift.models.alphabet import char2idx

T: Final = 64
"""Length of the line behind the prompt."""
L: Final = 8
"""Length of the block of equal letters."""
P_NOISE: Final = 1.0 / 16.0
"""Probability that a character of the line is replaced by `!`, each independently."""
PROMPT: Final = 3
"""`?`, the letter, `>`."""


def synthetic_sequences(n_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """(n_samples, 67) tokens, uint8: `?`, a letter, `>`, then 64 background characters with a block of 8 of that
    letter at a uniform place among the 57 that fit, and noise over all 64."""
    letters = torch.randint(char2idx["A"], char2idx["Z"] + 1, (n_samples, 1), generator=generator, dtype=torch.uint8)
    start = torch.randint(0, T - L + 1, (n_samples, 1), generator=generator)
    noise = torch.rand((n_samples, T), generator=generator) < P_NOISE
    offset = torch.arange(T) - start
    line = torch.where((offset >= 0) & (offset < L), letters, torch.full_like(letters, char2idx["_"]))
    line.masked_fill_(noise, char2idx["!"])
    question, end = torch.full_like(letters, char2idx["?"]), torch.full_like(letters, char2idx[">"])
    return torch.cat([question, letters, end, line], dim=1)


class SyntheticTargetDataset(Dataset[Tensor]):
    """`n_samples` sequences of 67 tokens; items are long tensors (67,).

    The sequences are drawn once, in one pass, from a generator seeded by `seed`; the same index always gives the
    same item, and an index past the end raises IndexError. They are stored as bytes (67 B each), and a DataLoader
    fetches whole batches through `__getitems__`.

    Args:
        n_samples: how many, at least 0.
        seed: None takes one from torch's global generator, so that `torch.manual_seed` decides the data.
        legacy_compat: the published behaviour: every access draws a new sequence from the global generator, whatever
            the index.
    """

    T = T
    L = L
    p_noise = P_NOISE

    def __init__(self, n_samples: int, *, seed: int | None = None, legacy_compat: bool = False) -> None:
        if operator.index(n_samples) < 0:
            raise UsageError(f"SyntheticTargetDataset: n_samples must be at least 0; got {n_samples!r}")
        self.n_samples = operator.index(n_samples)
        self.legacy_compat = legacy_compat
        self._sequences: Tensor | None = None
        if not legacy_compat:
            seed = int(torch.randint(0, 2**62, ()).item()) if seed is None else seed
            self._sequences = synthetic_sequences(self.n_samples, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, idx: SupportsIndex) -> Tensor:
        if self._sequences is None:
            return synthetic_sequences(1)[0].long()
        return self._sequences[self._position(idx)].long()

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Tensor]:
        """The items of many indices at once, as DataLoader asks for a batch."""
        if self._sequences is None:
            return list(synthetic_sequences(len(indices)).long().unbind(0))
        positions = torch.as_tensor(indices, dtype=torch.long)
        if positions.numel() and not (-self.n_samples <= int(positions.min()) and int(positions.max()) < self.n_samples):
            for index in indices:
                self._position(index)
        return list(self._sequences[positions].long().unbind(0))

    def _position(self, idx: SupportsIndex) -> int:
        position = operator.index(idx)
        if not -self.n_samples <= position < self.n_samples:
            raise IndexError(f"SyntheticTargetDataset: index {position} is outside its {self.n_samples} samples")
        return position
