"""What a DataLoader's worker made bad: told to the process that trains, which alone meets a batch that spoils a step.

A forked worker inherits the guards. Where an operation in its `__getitem__` or transform makes NaN or Inf of finite numbers, the worker writes the
line into a file that the training process reads if a batch of unknown origin comes in bad. In a run without such a birth there is no file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from instrument.events import Site
from instrument.locate.births import Birth
from instrument.told_lines import ToldLines

MOST_TOLD = 64  # lines of one worker


class WorkerBirths:
    """The births of the processes that were forked from the one that trains."""

    def __init__(self) -> None:
        self._lines = ToldLines("births")
        self._told: set[tuple[str, int, str]] = set()

    def add(self, result: Tensor, birth: Birth) -> None:
        """In a forked process: tell the first birth of each line and operation."""
        if not self._lines.is_forked:
            return
        place = (birth.site.file, birth.site.line, birth.op)
        if place in self._told or len(self._told) >= MOST_TOLD:
            return
        self._told.add(place)
        told: dict[str, Any] = {"code": birth.code, "op": birth.op, "message": birth.message, "site": asdict(birth.site)}
        told["nan"] = bool(torch.isnan(result.detach()).any())
        self._lines.tell(json.dumps(told))

    def origin_of(self, x: Tensor) -> Birth | None:
        """The first birth told of the kind that this bad data holds: NaN, or infinities alone."""
        wanted = bool(torch.isnan(x.detach()).any())
        for line in self._lines.read():
            try:
                told = json.loads(line)
            except ValueError:  # cut short: its worker was killed while it wrote
                continue
            if told["nan"] is wanted:
                return Birth(told["code"], told["op"], Site(**told["site"]), f"{told['message']}, in a worker of the DataLoader")
        return None

    def close(self) -> None:
        """Leave no file behind."""
        self._lines.forget()
