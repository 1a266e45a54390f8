"""A script that is prepared for a factorization that fails has its own remedy: it gets the error, and nothing is said."""

import contextlib
import unittest

import pytest
import torch

import instrument

SINGULAR = torch.ones(3, 3)


def _factorized(matrix):
    return torch.linalg.cholesky(matrix)


def _jitter_ladder(matrix):
    jitter, tries = 1e-6, 0
    while True:
        try:
            return torch.linalg.cholesky(matrix - 0.1 * torch.eye(3) + jitter * torch.eye(3)), tries
        except torch.linalg.LinAlgError:
            jitter, tries = jitter * 10, tries + 1


def _by_a_helper(matrix):
    try:
        factor = _factorized(matrix - torch.eye(3))
    except (ValueError, RuntimeError):
        factor = torch.eye(3)
    return factor, 0


def _suppressed(matrix):
    factor = torch.eye(3)
    with contextlib.suppress(RuntimeError):
        factor = torch.linalg.inv(matrix)
    return factor, 0


def _wanted_by_a_test(matrix):
    case = unittest.TestCase()
    with case.assertRaises(RuntimeError):  # noqa: PT027  # the form of unittest is what is tried
        torch.linalg.inv(matrix)
    with pytest.raises(ValueError, match="constraint"):
        torch.distributions.Normal(torch.zeros(2), torch.tensor([0.0, 1.0]), validate_args=True)
    return matrix, 0


@pytest.mark.parametrize("profile", ["guard", "train"])
@pytest.mark.parametrize("remedy", [_jitter_ladder, _by_a_helper, _suppressed, _wanted_by_a_test])
def test_the_scripts_own_remedy_is_left_alone(remedy, profile):
    plain, tries = remedy(SINGULAR)
    with instrument.stable(profile=profile) as run:
        guarded, guarded_tries = remedy(SINGULAR)
    assert torch.equal(plain, guarded)
    assert tries == guarded_tries
    assert run.events == ()


def _reports_and_ends(matrix):
    try:
        return torch.linalg.inv(matrix)
    except RuntimeError as error:
        raise RuntimeError("training failed") from error


def _leaves_the_loop(matrix):
    for _ in range(3):
        try:
            return torch.linalg.inv(matrix)
        except RuntimeError:
            break
    return None


def _around_everything(matrix):
    found = None
    try:
        for _ in range(3):
            found = torch.linalg.inv(matrix)
    except RuntimeError:
        found = None
    return found


def _catches_another(matrix):
    try:
        return torch.linalg.inv(matrix)
    except KeyError:
        return None


@pytest.mark.parametrize("call", [_reports_and_ends, _leaves_the_loop, _around_everything, _catches_another])
def test_what_only_reports_the_failure_is_no_remedy(call):
    with instrument.stable() as run:
        assert call(SINGULAR) is not None, "it was repaired"
    assert [event.code for event in run.events] == ["NS705"]


def test_an_error_that_was_expected_is_still_the_cause_of_what_it_spoilt():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], lr=0.1)
    with instrument.stable() as run:
        try:
            factor = torch.linalg.inv(SINGULAR)
        except RuntimeError:
            factor = torch.full((3, 3), float("nan"))
        (factor @ w).sum().backward()
        optimizer.step()
    assert run.first_cause is not None
    assert run.first_cause.code == "NS705"
    assert "inv raised" in run.first_cause.message or "inverse raised" in run.first_cause.message
