"""Sequences drawn from a trained latent ODE, as text, and whether they are what it was trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import torch

from latent_drift.models import alphabet
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sample_ode import sample_sequences_ode
from latent_drift.models.sequences import PROMPT, L, T

_PORTION: Final = 512  # sequences drawn together: their keys and values are held for every token, 0.4 MB a sequence of 67
_SEED_STRIDE: Final = 0x9E3779B97F4A7C15  # odd, so that no two portions of a seed meet


def draw_sequences(model: DeterministicLatentODE, count: int, length: int, seed: int, *, shared: bool = False) -> Iterator[str]:
    """Sequences drawn from the model with a seed of their own, as text; from one common z_0 if `shared`, else from one each."""
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    portion = max(1, count if shared else min(count, _PORTION))
    for number, first in enumerate(range(0, count, portion)):
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((seed + number * _SEED_STRIDE) % 2**63)
            common, own = sample_sequences_ode(model, length, min(portion, count - first), "cpu")
        yield from (alphabet.decode(row) for row in (common if shared else own))


def is_well_formed(text: str) -> bool:
    """Whether the synthetic data could have produced a sequence: a prompt `?X>`, and behind it 64 characters of background with one block
    of 8 X, every character of which noise (`!`) may have replaced; at least one X must be left.
    """
    prompt = re.match(r"\?([A-Z])>", text)
    if prompt is None or len(text) != PROMPT + T:
        return False
    letter, line = prompt[1], text[PROMPT:]
    block = rf"[{letter}!]{{{L}}}"
    return letter in line and any(re.fullmatch(rf"[_!]{{{start}}}{block}[_!]*", line) for start in range(T - L + 1))
