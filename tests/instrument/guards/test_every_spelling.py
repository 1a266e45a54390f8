"""Each spelling of the guards that tables of edges do not reach: the hazard, called through it, is dealt with and named."""

import math

import pytest
import torch
from torch.distributions import Normal

import instrument
from instrument.guards import OPERATION_GUARDS
from instrument.guards.distribution import DistributionGuard
from instrument.guards.factorization import FactorizationGuard
from instrument.guards.fill_value import FillValueGuard
from instrument.guards.half_precision import HalfPrecisionGuard
from instrument.guards.loss import LossGuard
from instrument.guards.probability import MultinomialGuard, ProbabilityGuard
from instrument.guards.statistic import EmptyMeanGuard

INF = math.inf
HALF = torch.float16
SINGULAR = [[1.0, 1.0], [1.0, 1.0]]
CALLS = {
    "mean": lambda f: f(torch.empty(0)),
    "nanmean": lambda f: f(torch.empty(0)),
    "cholesky": lambda f: f(torch.tensor(SINGULAR) - 1e-7 * torch.eye(2)),
    "inverse": lambda f: f(torch.tensor(SINGULAR)),
    "solve": lambda f: f(torch.tensor(SINGULAR), torch.ones(2, 1)),
    "binary_cross_entropy": lambda f: f(torch.tensor([1.0000001]), torch.tensor([1.0])),
    "bernoulli": lambda f: f(torch.tensor([1.0000001])),
    "multinomial": lambda f: f(torch.zeros(3), 1),
    "distribution": lambda f: Normal(torch.zeros(1), torch.zeros(1), validate_args=True).scale,
    "masked_fill": lambda f: f(torch.zeros(2, dtype=HALF), torch.tensor([True, False]), -1e9),
    "fill": lambda f: f(torch.zeros(2, dtype=HALF), -1e9),
    "full_like": lambda f: f(torch.zeros(2, dtype=HALF), -1e9),
    "full": lambda f: f((2,), -1e9, dtype=HALF),
    "new_full": lambda f: f(torch.zeros(2, dtype=HALF), (2,), -1e9),
    "index_fill": lambda f: f(torch.zeros(2, dtype=HALF), 0, torch.tensor([0]), -1e9),
    "cross_entropy": lambda f: f(torch.tensor([[-INF, 0.0]]), torch.tensor([0])),
    "nll_loss": lambda f: f(torch.tensor([[-INF, 0.0]]), torch.tensor([0])),
    "binary_cross_entropy_with_logits": lambda f: f(torch.tensor([INF, 0.0]), torch.zeros(2)),
    "kl_div": lambda f: f(torch.tensor([-INF, 0.0]), torch.tensor([1.0, 0.0]), reduction="sum"),
    "poisson_nll_loss": lambda f: f(torch.tensor([1000.0, 0.0]), torch.zeros(2)),
    "gaussian_nll_loss": lambda f: f(torch.tensor([INF, 0.0]), torch.zeros(2), torch.ones(2)),
    "mse_loss": lambda f: f(torch.tensor([1e30, 0.0]), torch.zeros(2)),
    "smooth_l1_loss": lambda f: f(torch.tensor([3e38, 0.0]), torch.tensor([-3e38, 0.0])),
    "huber_loss": lambda f: f(torch.tensor([3e38, 0.0]), torch.tensor([-3e38, 0.0])),
    "l1_loss": lambda f: f(torch.tensor([3e38, 0.0]), torch.tensor([-3e38, 0.0])),
    "ctc_loss": lambda f: f(torch.zeros(2, 1, 3).log_softmax(-1), torch.tensor([[1, 1]]), torch.tensor([2]), torch.tensor([2])),
    "sum": lambda f: f(torch.full((70_000,), 1.0, dtype=HALF)),
    "cumsum": lambda f: f(torch.full((70_000,), 1.0, dtype=HALF), 0),
    "layer_norm": lambda f: f(torch.eye(4, dtype=HALF), (4,), torch.full((4,), 6e4, dtype=HALF)),
    "group_norm": lambda f: f(torch.eye(4, dtype=HALF), 1, torch.full((4,), 6e4, dtype=HALF)),
    "rms_norm": lambda f: f(torch.eye(4, dtype=HALF), (4,), torch.full((4,), 6e4, dtype=HALF)),
    "softplus": lambda f: f(torch.zeros(2, dtype=HALF), 1e-5),
}
GUARDS = (EmptyMeanGuard, FactorizationGuard, ProbabilityGuard, MultinomialGuard, DistributionGuard, FillValueGuard, LossGuard, HalfPrecisionGuard)
CASES = [(g, s) for g in OPERATION_GUARDS if isinstance(g, GUARDS) for s in g.spellings()]
BOUND = {"bound_forward": True, "gradient": "neutralise"}
pytestmark = pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated:UserWarning")


def values(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize(("guard", "spelling"), CASES, ids=lambda v: getattr(v, "path", type(v).__name__))
def test_the_hazard_through_this_spelling_is_dealt_with_and_named(guard, spelling):
    call = CALLS[spelling.op]
    with torch.autocast("cpu", HALF, enabled=isinstance(guard, HalfPrecisionGuard)):
        try:
            plain = values(call(getattr(spelling.owner, spelling.name)))
        except (RuntimeError, ValueError):
            plain = None
        # A constraint of 0 <= p <= 1 that rounding breaks raises, or gives what depends on the dtype; all others fail plainly.
        assert plain is None or not torch.isfinite(plain).all(), "negative control"
        with instrument.stable(profile="train", division=BOUND) as run:
            repaired = values(call(getattr(spelling.owner, spelling.name)))
    assert torch.isfinite(repaired).all()
    # What is infinite from the beginning (a logit of inf) is data, and said to be that as well.
    events = [e for e in run.events if e.code != "NS803"]
    assert {e.code for e in events} == {guard.code} or (guard.code, spelling.op) == ("NS604", "binary_cross_entropy")
    assert all(e.repaired for e in events)
