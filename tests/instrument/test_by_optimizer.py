"""What a run remembers of an optimizer goes with it."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import torch

from instrument.by_optimizer import ByOptimizer


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def test_an_entry_does_not_keep_its_optimizer_alive_and_is_gone_before_its_id_can_be_another_ones() -> None:
    remembered: ByOptimizer[str] = ByOptimizer()
    plain = {}
    optimizer = _optimizer()
    key, alive = id(optimizer), ref(optimizer)
    remembered.put(optimizer, "first")
    plain[key] = "first"
    del optimizer
    gc.collect()
    assert alive() is None
    assert key in plain  # negative control: whoever gets the id next would find it
    assert key not in remembered
    assert remembered.optimizers() == []


def test_values_are_found_by_id_replaced_and_forgotten() -> None:
    remembered: ByOptimizer[int] = ByOptimizer()
    first, second = _optimizer(), _optimizer()
    assert remembered.get(id(first)) is None
    assert remembered.put(first, 1) == 1
    remembered.put(second, 2)
    remembered.put(first, 3)
    assert (remembered[id(first)], remembered[id(second)]) == (3, 2)
    assert remembered.optimizers() == [first, second]
    remembered.forget(first)
    assert remembered.optimizers() == [second]
    with pytest.raises(KeyError):
        remembered[id(first)]


def test_an_optimizer_that_is_forgotten_and_met_again_is_remembered_again() -> None:
    remembered: ByOptimizer[int] = ByOptimizer()
    optimizer = _optimizer()
    remembered.put(optimizer, 1)
    remembered.forget(optimizer)
    remembered.put(optimizer, 2)
    assert remembered.optimizers() == [optimizer]
    key = id(optimizer)
    del optimizer
    gc.collect()
    assert key not in remembered
