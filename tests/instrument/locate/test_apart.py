"""An error of our own while a cause is looked for is logged; it does not end the script. In these tests it would."""

import logging

import pytest
import torch
from torch import nn

import instrument
from instrument.locate import apart, search


def _fails(*arguments):
    raise ZeroDivisionError("ours")


def _train():
    w = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        (w * (float("nan") if step == 1 else 1.0)).sum().backward()
        optimizer.step()
    return w


def test_the_script_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(search, "trend_of", _fails)
    monkeypatch.setattr(apart, "raises", False)
    with caplog.at_level(logging.ERROR), instrument.stable() as run:
        w = _train()
    assert bool(torch.isfinite(w).all())
    assert run.tally.skipped == 1
    assert "the script goes on" in caplog.text
    assert "ZeroDivisionError: ours" in caplog.text


def test_in_the_projects_own_tests_it_is_raised(monkeypatch):
    monkeypatch.setattr(search, "trend_of", _fails)
    with pytest.raises(ZeroDivisionError, match="ours"), instrument.stable():
        _train()
