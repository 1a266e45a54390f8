"""When is a sequence one that the synthetic data set could have produced, and how often does noise occur in one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from latent_drift.models.alphabet import decode

PROMPT, LINE, BLOCK = 3, 64, 8


def is_well_formed(text: str) -> bool:
    """`?`, a letter, `>`; then 64 characters that are background or noise but for one block of 8, of that letter or noise."""
    if len(text) != PROMPT + LINE or text[0] != "?" or text[2] != ">" or not ("A" <= text[1] <= "Z"):
        return False
    letter, line = text[1], text[PROMPT:]
    if not set(line) <= {letter, "_", "!"} or letter not in line:
        return False
    first, last = line.index(letter), line.rindex(letter)
    starts = range(max(0, last - BLOCK + 1), min(first, LINE - BLOCK) + 1)
    return any("_" not in line[start : start + BLOCK] for start in starts)


def well_formed_rate(sequences: Iterable[Tensor]) -> float:
    """Share of well-formed sequences."""
    verdicts = [is_well_formed(decode(tokens)) for tokens in sequences]
    return sum(verdicts) / len(verdicts)


def noise_rate(sequences: Tensor) -> float:
    """Share of `!` among the characters behind the prompt (1/16 in the data)."""
    noise = [decode(tokens)[PROMPT:].count("!") for tokens in sequences]
    return sum(noise) / (len(noise) * (sequences.shape[1] - PROMPT))
