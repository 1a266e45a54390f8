"""Data by specification: the synthetic sets, or a file of a user's own.

synthetic                                  the model's own data
synthetic:samples=4000,seed=7,drift=1000   with its arguments
FILE                                       raccoon: `CLASS<tab>message` lines, or JSON lines with "class" and "text";
                                           ode: one sequence a line
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.models import alphabet
from latent_drift.models.log_alphabet import LOG_CATEGORIES
from latent_drift.models.log_data import LogDataset
from latent_drift.models.sequences import SyntheticTargetDataset
from latent_drift.training.arguments import typed
from latent_drift.training.batches import Data
from latent_drift.training.lines import text_of
from latent_drift.training.log_text import encode_lines
from latent_drift.training.names import did_you_mean

SYNTHETIC: Final = "synthetic"

MESSAGE_LENGTH: Final = 50
"""Characters of a log message: what the classifier's synthetic messages have, and what real ones are cut or padded to."""

_SAMPLES: Final = {"ode": 100_000, "raccoon": 50_000}
_ARGUMENTS: Final = {"ode": ("samples", "seed"), "raccoon": ("samples", "seed", "drift")}


@dataclass(frozen=True, slots=True)
class TensorData:
    """Items held in tensors with the same first axis."""

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The rows of these indices."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        return tuple(tensor[rows] for tensor in self.tensors)


class _Sequences:
    """The synthetic sequences as `Data`."""

    def __init__(self, dataset: SyntheticTargetDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        return (torch.stack(self._dataset.__getitems__(indices)),)


def settled(specification: str) -> str:
    """A specification that means the same in every working directory.

    Raises:
        UsageError: it is empty.
    """
    if not specification.strip():
        raise UsageError(f"--data is empty; give a file, or {SYNTHETIC}")
    return specification if specification.partition(":")[0] == SYNTHETIC else str(Path(specification).absolute())


def fingerprint(data: Data) -> str | None:
    """The sha256 of a file's items, by which a resumed run knows them; None for synthetic data, which their arguments decide."""
    if not isinstance(data, TensorData):
        return None
    digest = hashlib.sha256()
    for tensor in data.tensors:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def open_data(kind: str, specification: str, seed: int, samples: int | None = None) -> Data:
    """The data that a specification names.

    Args:
        kind: "ode" or "raccoon".
        specification: see this module.
        seed: of synthetic data that name none.
        samples: number of synthetic items where the specification says none; the kind's own number if None.

    Raises:
        UsageError: a specification, file or line that cannot be used; it is named.
    """
    name, _, text = specification.partition(":")
    if name == SYNTHETIC:
        given = _synthetic_arguments(kind, specification, text)
        count = given.get("samples", _SAMPLES[kind] if samples is None else samples)
        own_seed = given.get("seed", seed)
        if kind == "ode":
            return _Sequences(SyntheticTargetDataset(count, seed=own_seed))
        return LogDataset(count, MESSAGE_LENGTH, given.get("drift"), seed=own_seed)
    path = Path(specification)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "is no file"
        raise UsageError(f"--data {specification}: {what}; give a file, or {SYNTHETIC}[:samples=N,seed=N{',drift=N' if kind == 'raccoon' else ''}]")
    try:
        lines = [line.removesuffix("\r") for line in text_of(path.read_bytes()).split("\n")]
    except OSError as error:
        raise UsageError(f"--data {specification}: cannot be read: {error.strerror}") from error
    return _read_sequences(path, lines) if kind == "ode" else _read_messages(path, lines)


def _synthetic_arguments(kind: str, specification: str, text: str) -> dict[str, int]:
    given: dict[str, int] = {}
    for part in text.split(",") if text else []:
        key, sign, value = part.partition("=")
        number = typed(value)
        if key not in _ARGUMENTS[kind]:
            raise UsageError(f"--data {specification}: {key!r} is no argument of the synthetic data. {did_you_mean(key, _ARGUMENTS[kind])}")
        if not sign or isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise UsageError(f"--data {specification}: {key} must be a whole number of at least 0; got {value!r}")
        given[key] = number
    return given


def _read_messages(path: Path, lines: Sequence[str]) -> TensorData:
    """Messages with their classes, encoded as `classify` encodes them."""
    texts, labels = [], []
    as_json = path.suffix.lower() in (".json", ".jsonl", ".ndjson")
    for number, name, text in _json_rows(path, lines) if as_json else _tabbed_rows(path, lines):
        if str(name).upper() not in LOG_CATEGORIES:
            raise UsageError(f"--data {path}, line {number}: the class must be one of {', '.join(LOG_CATEGORIES)}; got {name!r}")
        labels.append(LOG_CATEGORIES.index(str(name).upper()))
        texts.append(text)
    if not texts:
        raise UsageError(f"--data {path}: holds no message")
    return TensorData((encode_lines(texts, MESSAGE_LENGTH)[0], torch.tensor(labels, dtype=torch.long)))


def _tabbed_rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, sign, text = line.partition("\t")
            if not sign:
                raise UsageError(f"--data {path}, line {number}: expected CLASS, a tab and the message; got {line[:60]!r}")
            yield number, name.strip(), text


def _json_rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, Any, str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"--data {path}, line {number}: is no JSON: {error.msg}") from error
        if not isinstance(row, Mapping) or not isinstance(row.get("text"), str) or "class" not in row:
            raise UsageError(f'--data {path}, line {number}: expected {{"class": ..., "text": ...}}; got {line[:60]!r}')
        if row["class"] is not None:  # what classify writes for a line without a message
            yield number, row["class"], row["text"]


def _read_sequences(path: Path, lines: Sequence[str]) -> TensorData:
    """Sequences of one length, in the model's alphabet."""
    rows: list[Tensor] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if rows and len(line) != len(rows[0]):
            raise UsageError(f"--data {path}, line {number}: has {len(line)} characters, the lines before it {len(rows[0])}; pad them with '_'")
        try:
            rows.append(alphabet.encode(line))
        except alphabet.UnknownCharacterError as error:
            raise UsageError(f"--data {path}, line {number}: {error}") from error
    if not rows:
        raise UsageError(f"--data {path}: holds no sequence")
    return TensorData((torch.stack(rows),))
