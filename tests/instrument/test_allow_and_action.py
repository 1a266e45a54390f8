"""The config's allow-list, and what an anomaly that nothing mended does."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import instrument
from latent_drift.errors import NumericalError

HOT = torch.tensor([1.0, 200.0])
ROW = torch.full((1, 3), -math.inf)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return torch.exp(self.inner(x))


def patterns():
    here = Path(__file__)
    line = next(i for i, text in enumerate(here.read_text(encoding="utf-8").splitlines(), start=1) if "# meant" in text and "next(" not in text)
    return [f"{here.name}:{line}", here.name, str(here), "exp", "ex*", f"{here}:{line}"]


@pytest.mark.parametrize("pattern", patterns(), ids=lambda p: Path(p).name)
def test_an_infinity_that_is_meant_stays(pattern):
    with instrument.stable(anomaly={"allow": [pattern]}) as run:
        assert torch.isinf(torch.exp(HOT)[1])  # meant
    assert run.events == ()


def test_other_places_are_guarded_all_the_same():
    with instrument.stable(anomaly={"allow": ["log", "elsewhere.py", "decoder.*"]}) as run:
        assert torch.isfinite(torch.exp(HOT)).all()
    assert len(run.events) == 1


def test_every_kind_of_guard_asks():
    with instrument.stable(anomaly={"allow": ["test_allow_and_action.py"]}) as run:
        assert torch.isnan(ROW.softmax(-1)).all()
        assert torch.isinf(HOT.clone().exp_()[1])
        assert torch.isinf(torch.tensor([1e30]) ** 2)
        assert torch.isinf(F.mse_loss(torch.tensor([1e30]), torch.tensor([0.0])))
        with pytest.raises(RuntimeError):
            torch.linalg.cholesky(torch.ones(2, 2))
    assert not any(e.repaired for e in run.events)


def spoil():
    parameter = nn.Parameter(torch.ones(2))
    (parameter * torch.tensor([1.0, math.nan])).sum().backward()
    return parameter


def test_record_warn_and_raise():
    with instrument.stable(anomaly={"action": "record"}) as run:
        spoil()
    assert "NS509" in {e.code for e in run.events}
    with instrument.stable(anomaly={"action": "warn"}), pytest.warns(RuntimeWarning, match="the loss is nan"):
        spoil()
    with instrument.stable(anomaly={"action": "raise"}), pytest.raises(NumericalError, match="the loss is nan"):
        spoil()
