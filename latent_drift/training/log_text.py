"""From a line of a real log file to a message that the classifier knows."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from latent_drift.models.log_alphabet import log_char2idx

PADDING: Final = 0
"""Index of `_`, which also stands for every character outside the alphabet."""

_TIME: Final = r"\d{1,2}:\d{2}:\d{2}(?:[.,:]\d{1,9})?(?:\s?(?:Z|UTC|GMT|[+-]\d{2}:?\d{2})\b)?"
_NUMERIC_DATE: Final = r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}/[A-Z][a-z]{2}/\d{4})"
_NAMED_DATE: Final = r"(?:[A-Z][a-z]{2},?\s+)?[A-Z][a-z]{2}\s+\d{1,2}(?:\s+\d{4})?"
_OTHER: Final = r"\[\s*\d+\.\d{3,}\s*\]|\d{9,13}(?:\.\d+)?\b"  # seconds since boot, as the kernel has them, or since 1970
_HOST: Final = r"[\w.:-]+\s+"
_PROGRAM: Final = r"[\w./()@-]+"

STAMPS: Final = (
    # syslog: Oct 16 23:04:01 host program[pid]:
    re.compile(rf"^\W*(?:<\d+>)?{_NAMED_DATE}\s+{_TIME}(?:\s+\d{{4}}\b)?[\])]?(?:\s+{_HOST}{_PROGRAM}(?:\[\d+\])?:(?=\s))?"),
    # everything else, where a sender is known by its process number only: `ERROR db.pool: ...` is no sender
    re.compile(rf"^\W*(?:{_NUMERIC_DATE}[T\s:]{{0,3}}(?:{_TIME})?|{_TIME}|{_OTHER})[\])]?(?:\s+{_HOST}{_PROGRAM}\[\d+\]:(?=\s))?"),
)
"""Time stamps at the start of a line, bracketed or not, with the `host program[pid]:` that syslog writes behind them."""

_LONGEST: Final = 4096
"""Characters of a line that are looked at: stamps stand at its start."""

_LEADING: Final = re.compile(r"^[^A-Za-z0-9]+")

_UPPER: Final = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
"""ASCII only: `str.upper` makes two characters of some, and positions count."""


def message_of(line: str) -> str:
    """The line without time stamps, syslog's sender, and the punctuation before its first word: what the model's training messages look like."""
    rest = line[:_LONGEST]
    while match := next((found for stamp in STAMPS if (found := stamp.match(rest))), None):
        rest = rest[match.end() :]
    return _LEADING.sub("", rest)


def encode_line(line: str, length: int, *, whole: bool = False) -> list[int] | None:
    """The indices of a line's message, padded or cut to `length`; None where it has no letter or digit.

    Args:
        whole: take the line as it is, time stamp included.
    """
    text = (line if whole else message_of(line))[:length].translate(_UPPER)
    indices = [log_char2idx.get(character, PADDING) for character in text]
    if all(index == PADDING for index in indices):
        return None
    return indices + [PADDING] * (length - len(indices))


def encode_lines(lines: Sequence[str], length: int, *, whole: bool = False) -> tuple[Tensor, list[bool]]:
    """Tokens (len(lines), length), long, and for each line whether there is anything to classify (a row of padding where not)."""
    rows = [encode_line(line, length, whole=whole) for line in lines]
    blank = [PADDING] * length
    tokens = torch.tensor([blank if row is None else row for row in rows], dtype=torch.long).reshape(len(rows), length)
    return tokens, [row is not None for row in rows]
