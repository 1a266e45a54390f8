"""A conversion to a dtype that cannot hold the number is named when the step fails for it, in every spelling; its result is torch's own."""

from pathlib import Path

import pytest
import torch
from torch import nn

import instrument
from instrument.guards.narrowing import NarrowingGuard

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()
BIRTH = next(i for i, line in enumerate(LINES, start=1) if line.endswith("# birth"))

GIVEN = {"half": (torch.float32, 70_000.0, ()), "bfloat16": (torch.float64, 1e40, ()), "float": (torch.float64, 1e40, ())}
GIVEN |= {op: (torch.float64, 1e6, (torch.float16,)) for op in ("to", "type")}


def _named(spelling):
    return spelling.path


@pytest.mark.parametrize("spelling", NarrowingGuard().spellings(), ids=_named)
def test_what_does_not_fit_is_named_at_the_conversion(spelling):
    dtype, large, target = GIVEN[spelling.op]
    data = torch.tensor([[1.0, 2.0], [large, 3.0]], dtype=dtype)
    weights = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weights], lr=0.1)
    with instrument.stable(profile="guard") as run:
        narrow = getattr(data, spelling.name)(*target)  # birth
        loss = (narrow.double().float() @ weights).sum()
        loss.backward()
        optimizer.step()
    assert torch.isinf(narrow[1, 0]), "rounding to infinity is legal and stays"
    assert torch.isfinite(weights).all()
    assert (run.first_cause.code, run.first_cause.line, run.first_cause.op) == ("NS805", BIRTH, spelling.op)


@pytest.mark.parametrize("spelling", NarrowingGuard().spellings(), ids=_named)
def test_what_fits_and_what_came_in_infinite_is_no_event(spelling):
    dtype, _, target = GIVEN[spelling.op]
    data = torch.tensor([1.0, -2.5, float("inf"), float("nan")], dtype=dtype)
    plain = getattr(data, spelling.name)(*target)
    with instrument.stable(profile="guard") as run:
        guarded = getattr(data, spelling.name)(*target)
        wide = getattr(guarded, spelling.name)(*target)  # nothing narrows
    assert torch.equal(plain.nan_to_num(7.0), guarded.nan_to_num(7.0))
    assert wide.dtype is plain.dtype
    assert run.events == ()
