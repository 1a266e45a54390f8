"""Lines of log files sorted into the classifier's categories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from latent_drift.models.log_alphabet import LOG_CATEGORIES
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.training.data import MESSAGE_LENGTH
from latent_drift.training.log_text import encode_lines

ROWS: Final = 512
"""Most rows of a pass."""


@dataclass(frozen=True, slots=True)
class Classified:
    """A line and what it is: `category` is None, and `probability` 0, where it has no letter or digit."""

    text: str
    category: str | None
    probability: float


class LineClassifier:
    """A trained classifier for lines of text.

    Args:
        model: put into evaluation mode and, but on mps, which has none, into float64.
        device: where it is.
        whole: take lines as they are, time stamps included.

    *Numerics*: which lines arrive together changes the order of sums in a product of matrices. In float64 that moves a probability by
    1e-15, so that what is shown of a line does not depend on its neighbours; in float32 it would be the seventh digit.
    """

    def __init__(self, model: RaccoonLogClassifier, device: torch.device, *, whole: bool = False) -> None:
        self._model = model.eval() if device.type == "mps" else model.eval().double()
        self._device, self._whole = device, whole

    def __call__(self, lines: Sequence[str]) -> Iterator[Classified]:
        """What each line is, in order."""
        for first in range(0, len(lines), ROWS):
            yield from self._pass(lines[first : first + ROWS])

    def _pass(self, lines: Sequence[str]) -> Iterator[Classified]:
        tokens, has_content = encode_lines(lines, MESSAGE_LENGTH, whole=self._whole)
        with torch.inference_mode():
            shares = self._model.predict_logits(tokens.to(self._device)).double().softmax(-1).cpu()
        best, index = shares.max(-1)
        for line, known, share, category in zip(lines, has_content, best.tolist(), index.tolist(), strict=True):
            yield Classified(line, LOG_CATEGORIES[category], share) if known else Classified(line, None, 0.0)
