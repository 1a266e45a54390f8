"""Writes into an optimizer's state that its own steps did not make, told from theirs by torch's version counters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from instrument.recovery.state import OutsideWrites

KINDS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "AMSGrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Rprop": lambda p: torch.optim.Rprop(p),
}


class _Watched:
    def __init__(self, kind: str) -> None:
        self.parameters = [nn.Parameter(torch.randn(3, 2)) for _ in range(4)]
        self.optimizer = KINDS[kind](self.parameters)
        self.writes = OutsideWrites()

    def step(self, *, without: int = 0) -> bool:
        for index, p in enumerate(self.parameters):
            p.grad = None if index < without else torch.randn_like(p)
        found = self.writes.happened(self.optimizer)
        self.optimizer.step()
        self.writes.after_step(self.optimizer)
        return found

    def write(self) -> None:
        state = self.optimizer.state[self.parameters[-1]]
        value = next(v for v in state.values() if isinstance(v, torch.Tensor) and v.numel() > 1)
        value.view(-1)[0] = 1e30


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_one_kind_are_no_outside_writes_and_one_write_is_noticed_whenever_it_comes(kind: str) -> None:
    torch.manual_seed(0)
    for quiet_steps in (1, 2, 3, 9):
        watched = _Watched(kind)
        assert [watched.step() for _ in range(quiet_steps)] == [False] * quiet_steps
        watched.write()
        assert watched.step()
        assert [watched.step() for _ in range(4)] == [False] * 4
        watched.write()
        assert watched.step()


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_parameters_without_a_gradient_now_and_then_cost_one_look_and_hide_no_write(kind: str) -> None:
    torch.manual_seed(0)
    watched = _Watched(kind)
    for _ in range(4):
        watched.step()
    found = [watched.step(without=index % 2) for index in range(8)]
    assert sum(found) <= 1
    watched.write()
    assert watched.step()
    assert not watched.step(without=1)
    watched.write()
    assert watched.step(without=1)


def test_a_step_that_was_left_out_is_no_write() -> None:
    watched = _Watched("AdamW")
    for _ in range(4):
        watched.step()
    assert not watched.writes.happened(watched.optimizer)
    watched.writes.after_step(watched.optimizer, failed=True)  # the optimizer was not called
    assert not watched.step()
    watched.write()
    assert watched.step()
