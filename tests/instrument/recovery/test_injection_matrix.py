"""The promise: whatever number goes bad, and wherever, parameters are never non-finite between steps; nor are buffers and optimizer state."""

import itertools

import pytest

from instrument.injection import PLACES
from tests.instrument.recovery.injection_matrix import OPTIMIZERS, VALUES, Case, cases, train


@pytest.fixture(scope="module")
def plain():
    return [train(Case(place, "nan", optimizer)) for place, optimizer in itertools.product(PLACES, OPTIMIZERS)]


def test_without_guards_parameters_buffers_and_state_go_bad(plain):
    assert sum(r.parameters > 0 for r in plain) > len(plain) / 2, "negative control"
    assert sum(r.buffers > 0 for r in plain) > len(plain) / 2
    assert sum(r.state > 0 for r in plain) > len(plain) / 2


@pytest.mark.parametrize("case", list(cases(every=False)), ids=str)
def test_guarded_nothing_stays_bad(case):
    result = train(case)
    assert (result.parameters, result.buffers, result.state) == (0, 0, 0)
    assert result.ended in ("went on", "raised NumericalError")
    assert result.ended == "went on" or case.profile == "strict", "only the strict profile may end a training"


def test_the_sample_meets_every_place_under_every_policy_profile_and_value():
    sample = list(cases(every=False))
    for field in ("policy", "profile"):
        pairs = {(c.place, getattr(c, field)) for c in sample}
        assert len(pairs) == len(PLACES) * len({getattr(c, field) for c in sample})
    assert {(c.place, c.value) for c in sample} == set(itertools.product(PLACES, VALUES))
    assert {(c.place, c.optimizer) for c in sample} == set(itertools.product(PLACES, OPTIMIZERS))


@pytest.mark.slow
def test_every_combination():
    bad = [(str(case), result) for case in cases(every=True) if (result := train(case)).parameters or result.buffers or result.state]
    assert bad == []
