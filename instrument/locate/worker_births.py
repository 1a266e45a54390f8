"""What a DataLoader's worker made bad: told to the process that trains, which alone meets a batch that spoils a step.

A forked worker inherits the guards. Where an operation in its `__getitem__` or transform makes NaN or Inf of finite numbers, the worker writes the
line into a file that the training process reads if a batch of unknown origin comes in bad. In a run without such a birth there is no file.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instrument.events import Site
from instrument.locate.births import Birth

MOST_TOLD = 64  # lines of one worker


class WorkerBirths:
    """The births of the processes that were forked from the one that trains."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._file = Path(tempfile.gettempdir()) / f"latent-drift-births-{uuid.uuid4().hex}.jsonl"
        self._told: set[tuple[str, int, str]] = set()

    def add(self, result: Tensor, birth: Birth) -> None:
        """In a forked process: tell the first birth of each line and operation."""
        if os.getpid() == self._process:
            return
        place = (birth.site.file, birth.site.line, birth.op)
        if place in self._told or len(self._told) >= MOST_TOLD:
            return
        self._told.add(place)
        told: dict[str, Any] = {"code": birth.code, "op": birth.op, "message": birth.message, "site": asdict(birth.site)}
        told["nan"] = bool(torch.isnan(result.detach()).any())
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")

    def origin_of(self, x: Tensor) -> Birth | None:
        """The first birth told of the kind that this bad data holds: NaN, or infinities alone."""
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        wanted = bool(torch.isnan(x.detach()).any())
        for line in lines:
            told = json.loads(line)
            if told["nan"] is wanted:
                return Birth(told["code"], told["op"], Site(**told["site"]), f"{told['message']}, in a worker of the DataLoader")
        return None

    def close(self) -> None:
        """Leave no file behind."""
        if os.getpid() == self._process:
            self._file.unlink(missing_ok=True)
