"""What raises for a numerical reason: repaired as little as possible under train, as before under guard; bugs raise in every profile."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Beta, Categorical, Gamma, MultivariateNormal, Normal
from torch.nn import functional as F

import instrument


@pytest.fixture(autouse=True)
def _validation_is_on():
    """torch.compile turns the validation of distributions off for the whole process, and other tests compile."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(True)
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


SINGULAR = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
EYE = torch.eye(2)
HALF = torch.zeros(2, 3, dtype=torch.float16)
MASK = torch.tensor([True, False, True])

REPAIRED = {
    "linalg.cholesky": (lambda: torch.linalg.cholesky(SINGULAR), "NS705"),
    "torch.cholesky of a batch": (lambda: torch.linalg.cholesky(torch.stack([EYE, SINGULAR])), "NS705"),
    "linalg.inv": (lambda: torch.linalg.inv(SINGULAR), "NS705"),
    "Tensor.inverse": (lambda: SINGULAR.double().inverse(), "NS705"),
    "torch.inverse of zeros": (lambda: torch.inverse(torch.zeros(3, 3)), "NS705"),
    "linalg.solve": (lambda: torch.linalg.solve(SINGULAR, torch.tensor([1.0, 1.0])), "NS705"),
    "bce by rounding": (lambda: F.binary_cross_entropy(torch.tensor([1.0000001]), torch.tensor([1.0])), "NS709"),
    "BCELoss by rounding": (lambda: nn.BCELoss()(torch.tensor([1.0000002, 0.5]), torch.tensor([1.0, 0.0])), "NS709"),
    "bernoulli": (lambda: torch.bernoulli(torch.tensor([1.0000001])), "NS709"),
    "multinomial without mass": (lambda: torch.multinomial(torch.zeros(4), 1).double(), "NS709"),
    "multinomial with nan": (lambda: torch.multinomial(torch.tensor([[1.0, 2.0], [math.nan, 1.0]]), 1).double(), "NS709"),
    "Normal whose scale underflowed": (lambda: Normal(torch.zeros(2), torch.tensor([0.0, 1.0])).rsample(), "NS709"),
    "Gamma": (lambda: Gamma(torch.tensor([0.0]), torch.tensor([1.0])).concentration, "NS709"),
    "Beta": (lambda: Beta(torch.tensor([0.0]), torch.tensor([1.0])).concentration1, "NS709"),
    "Bernoulli by rounding": (lambda: Bernoulli(probs=torch.tensor([1.0000001])).sample(), "NS709"),
    "Categorical without mass": (lambda: Categorical(probs=torch.zeros(3)).sample().double(), "NS709"),
    "MultivariateNormal": (lambda: MultivariateNormal(torch.zeros(2), SINGULAR).rsample(), "NS705"),
    "masked_fill": (lambda: HALF.masked_fill(MASK, -1e9), "NS402"),
    "masked_fill function": (lambda: torch.masked_fill(HALF, MASK, value=-1e9), "NS402"),
    "masked_fill in place": (lambda: HALF.clone().masked_fill_(MASK, 1e9), "NS402"),
    "full_like": (lambda: torch.full_like(HALF, -1e9), "NS402"),
    "fill_": (lambda: HALF.clone().fill_(-1e9), "NS402"),
    "new_full": (lambda: HALF.new_full((2,), -1e9), "NS402"),
    "full": (lambda: torch.full((2, 3), -1e9, dtype=torch.float16), "NS402"),
    "full by name, into a tensor": (lambda: torch.full(size=(3,), fill_value=1e9, out=torch.empty(3, dtype=torch.float16)), "NS402"),
    "masked_fill with a tensor": (lambda: HALF.masked_fill(MASK, torch.tensor(-1e9)), "NS402"),
}


@pytest.mark.parametrize("case", REPAIRED)
def test_train_repairs_and_guard_raises_as_before(case):
    call, code = REPAIRED[case]
    with pytest.raises((RuntimeError, ValueError)) as plain:
        call()
    with instrument.stable(profile="guard") as run, pytest.raises(type(plain.value)) as guarded:
        call()
    assert str(guarded.value) == str(plain.value)
    assert {e.action for e in run.events} == {"observed"}
    with instrument.stable(profile="train") as run:
        result = call()
    assert torch.isfinite(result).all()
    assert code in {e.code for e in run.events}
    assert {e.action for e in run.events} == {"repaired"}
    assert run.events[0].file == __file__


BUGS = {
    "an indefinite matrix": lambda: torch.linalg.cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
    "a matrix with NaN": lambda: torch.linalg.cholesky(torch.full((2, 2), math.nan)),
    "a matrix that is not square": lambda: torch.linalg.inv(torch.ones(2, 3)),
    "a probability of 1.3": lambda: F.binary_cross_entropy(torch.tensor([1.3]), torch.tensor([1.0])),
    "shapes that differ": lambda: F.binary_cross_entropy(torch.rand(3), torch.rand(2)),
    "a negative weight": lambda: torch.multinomial(torch.tensor([-0.5, 1.0]), 1),
    "more samples than categories": lambda: torch.multinomial(torch.ones(2), 5),
    "a negative scale": lambda: Normal(0.0, torch.tensor([-1.0])),
    "probs of 1.3": lambda: Bernoulli(probs=torch.tensor([1.3])),
    "no argument": lambda: torch.linalg.cholesky(),
    "a value of the wrong type": lambda: HALF.masked_fill(MASK, "x"),
    "a size that is none": lambda: torch.full((-2,), -1e9, dtype=torch.float16),
    "no such shape": lambda: HALF.masked_fill(torch.tensor([True] * 7), -1e9),
}


@pytest.mark.parametrize("profile", ["guard", "train"])
@pytest.mark.parametrize("case", BUGS)
def test_a_bug_that_is_not_numerical_raises_the_same_in_every_profile(case, profile):
    with pytest.raises(Exception) as plain:  # noqa: PT011  # whatever it is, it has to be the same
        BUGS[case]()
    with instrument.stable(profile=profile) as run, pytest.raises(type(plain.value)) as guarded:
        BUGS[case]()
    assert str(guarded.value) == str(plain.value)
    assert not any(e.repaired for e in run.events)


def test_jitter_is_small_and_other_matrices_of_the_batch_hardly_move():
    batch = torch.stack([EYE * 4, SINGULAR])
    with instrument.stable():
        factor = torch.linalg.cholesky(batch)
    torch.testing.assert_close(factor[0], EYE * 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(factor[1] @ factor[1].T, SINGULAR, rtol=1e-5, atol=1e-5)


def test_a_constant_that_the_default_dtype_cannot_hold():
    torch.set_default_dtype(torch.float16)
    try:
        with instrument.stable() as run:
            assert torch.full((2,), -1e9).eq(torch.finfo(torch.float16).min).all()
    finally:
        torch.set_default_dtype(torch.float32)
    assert [(e.code, e.shape, e.dtype) for e in run.events] == [("NS402", (2,), "float16")]


def test_deliberate_infinities_and_healthy_calls_are_left_alone():
    with instrument.stable() as run:
        assert torch.isinf(HALF.masked_fill(MASK, -math.inf)[0, 0])
        assert torch.isinf(torch.full((2,), -math.inf, dtype=torch.float16)).all()
        torch.linalg.cholesky(EYE)
        Normal(torch.zeros(2), torch.ones(2)).log_prob(torch.zeros(2))
        torch.multinomial(torch.tensor([0.5, 0.5]), 1)
    assert run.events == ()


def test_gradients_flow_through_the_repair():
    log_scale = torch.tensor([-200.0, 0.0], requires_grad=True)
    with instrument.stable() as run:
        sample = Normal(torch.zeros(2), log_scale.exp()).rsample()
        sample.sum().backward()
    assert torch.isfinite(log_scale.grad).all()
    assert [e.code for e in run.events] == ["NS709"]
