"""What child processes and DataLoader workers run: importable by name, so that spawned ones find it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tests.instrument.no_harm.calls import elementwise, inputs, losses, rows


def train(queue: Any) -> None:
    """A few optimizer steps; puts the loss bits and a hash of the parameters."""
    queue.put(trained())


def trained() -> list[str]:
    """Loss bits and parameters of a few steps."""
    torch.set_num_threads(1)
    torch.manual_seed(70)
    model = torch.nn.Linear(5, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = rows(torch.tanh(elementwise(model(inputs())))).square().mean() + losses(torch.tanh(model(inputs())))
        loss.backward()
        optimizer.step()
        seen.append(loss.item().hex())
    return [*seen, str(model.weight.tolist())]


def is_free_of_us(queue: Any) -> None:
    """Puts whether torch's names are torch's own in this process."""
    queue.put([type(torch.exp).__name__, type(torch.Tensor.log).__name__, torch.isinf(torch.exp(torch.tensor(1000.0))).item()])


def overflow(queue: Any) -> None:
    """Calls exp beyond its range, twice at one line."""
    for _ in range(2):
        largest = torch.exp(torch.tensor(200.0))
    queue.put(largest.item())


def apply_to(queue: Any, function: Any) -> None:
    """Calls a function that was sent here."""
    queue.put(function(inputs()).tolist())


class Curves(Dataset[Tensor]):
    """Samples that are computed with guarded operations, in a worker."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return rows(elementwise(inputs() + 0.1 * index))
