"""One bad element of a loss does not spoil the others; finite losses are bitwise torch's."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import instrument

INF = math.inf
TINY = -math.log(torch.finfo(torch.float32).tiny)
ROOT = math.sqrt(torch.finfo(torch.float32).max)


def logits():
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    x[1, 2] = -INF  # the target's own class is masked
    x[3, 0] = INF
    return x.requires_grad_()


TARGET = torch.tensor([0, 2, 1, 1])
GOOD = [0, 2]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("rule", ["bound", "omit"])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5])], ids=["plain", "weighted"])
def test_cross_entropy_keeps_its_good_elements(reduction, rule, weight):
    x = logits()
    plain = F.cross_entropy(x, TARGET, weight=weight, reduction=reduction)
    assert not torch.isfinite(plain).all(), "negative control"
    with instrument.stable(profile="guard", losses={"nonfinite_elements": rule}) as run:
        loss = F.cross_entropy(x, TARGET, weight=weight, reduction=reduction)
        loss.sum().backward()
    elements = F.cross_entropy(x.detach().double()[GOOD], TARGET[GOOD], weight=None if weight is None else weight.double(), reduction="none")
    shares = torch.ones(4) if weight is None else weight[TARGET]
    fill = TINY if rule == "bound" else 0.0
    total = elements.sum().item() + 2 * fill
    expected = {"none": None, "sum": total, "mean": total / (shares.sum() if rule == "bound" else shares[GOOD].sum()).item()}[reduction]
    if expected is None:
        torch.testing.assert_close(loss[GOOD].double(), elements)
        assert loss[[1, 3]].tolist() == pytest.approx([fill, fill])
    else:
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(x.grad[[1, 3]], torch.zeros(2, 3))
    assert torch.isfinite(x.grad).all()
    assert x.grad[GOOD].abs().sum() > 0
    assert "NS604" in {e.code for e in run.events}


def test_ignored_targets_do_not_count():
    x, target = logits(), torch.tensor([0, 2, -100, 1])
    with instrument.stable(losses={"nonfinite_elements": "omit"}):
        loss = F.cross_entropy(x, target)
    assert loss.item() == pytest.approx(F.cross_entropy(x.detach()[:1], target[:1]).item())


ELEMENTWISE = {
    "mse_loss": (torch.tensor([1.0, 1e30, 2.0]), torch.tensor([0.5, -1e30, 1.0]), ROOT),
    "huber_loss": (torch.tensor([1.0, INF, 2.0]), torch.tensor([0.5, 0.0, 1.0]), ROOT),
    "smooth_l1_loss": (torch.tensor([1.0, math.nan, 2.0]), torch.tensor([0.5, 0.0, 1.0]), ROOT),
    "binary_cross_entropy_with_logits": (torch.tensor([1.0, INF, 2.0]), torch.tensor([0.0, 0.0, 1.0]), TINY),
    "kl_div": (torch.tensor([-1.0, -INF, -2.0]), torch.tensor([0.2, 0.5, 0.3]), TINY),
    "poisson_nll_loss": (torch.tensor([1.0, 200.0, 2.0]), torch.tensor([1.0, 0.0, 1.0]), TINY),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_elementwise_losses(name):
    values, target, ceiling = ELEMENTWISE[name]
    x = values.clone().requires_grad_()
    assert not torch.isfinite(getattr(F, name)(x, target)), "negative control"
    with instrument.stable(profile="guard"):
        loss = getattr(F, name)(x, target)
        loss.backward()
    good = getattr(F, name)(values[[0, 2]].double(), target[[0, 2]].double(), reduction="sum").item()
    assert loss.item() == pytest.approx((good + ceiling) / 3, rel=1e-5)
    assert x.grad[1].item() == 0.0
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("var", [torch.full((3, 2), 0.5), torch.full((3,), 0.5), torch.full((3, 1), 0.5), 0.5])
@pytest.mark.parametrize("bad", [INF, math.nan, 1e30])
@pytest.mark.parametrize("rule", ["bound", "omit"])
def test_gaussian_nll_bounds_the_element_whatever_form_the_variance_has(var, bad, rule):
    torch.manual_seed(0)
    values, target = torch.randn(3, 2), torch.randn(3, 2)
    values[1, 1] = bad
    x = values.clone().requires_grad_()
    spread = var.clone().mul(1e-12).requires_grad_() if isinstance(var, torch.Tensor) else 1e-12
    assert not torch.isfinite(F.gaussian_nll_loss(x, target, spread, eps=1e-12)), "negative control"
    with instrument.stable(profile="guard", losses={"nonfinite_elements": rule}) as run:
        loss = F.gaussian_nll_loss(x, target, spread, eps=1e-12)
        loss.backward()
    good = torch.ones(3, 2, dtype=torch.bool)
    good[1, 1] = False
    exact = F.gaussian_nll_loss(values[good].double(), target[good].double(), torch.full((5,), 5e-13).double(), eps=1e-12, reduction="sum")
    if not isinstance(var, torch.Tensor):
        exact = F.gaussian_nll_loss(values[good].double(), target[good].double(), torch.full((5,), 1e-12).double(), eps=1e-12, reduction="sum")
    expected = (exact + TINY) / 6 if rule == "bound" else exact / 5
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert x.grad[1, 1].item() == 0.0
    assert torch.isfinite(x.grad).all()
    assert not isinstance(spread, torch.Tensor) or torch.isfinite(spread.grad).all()
    assert "NS604" in {e.code for e in run.events}


def test_modules_come_here_too():
    x = logits()
    with instrument.stable(profile="guard") as run:
        assert torch.isfinite(nn.CrossEntropyLoss()(x, TARGET))
    assert run.events[0].file == __file__


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_finite_elements_whose_sum_overflows(reduction):
    x = torch.full((1000,), 1e19, requires_grad=True)
    target = torch.zeros(1000)
    assert torch.isinf(F.mse_loss(x, target, reduction=reduction)), "negative control: 1000 squares of 1e38"
    with instrument.stable("1.0.0", profile="guard") as run:
        loss = F.mse_loss(x, target, reduction=reduction)
        loss.backward()
    expected = min((x.detach().double() ** 2).sum().item() / (1000 if reduction == "mean" else 1), torch.finfo(torch.float32).max)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(x.grad, 2e19 / (1000 if reduction == "mean" else 1) * torch.ones(1000))
    assert [event.code for event in run.events] == ["NS604"]


def test_divergence_where_the_target_has_no_mass():
    x, target = torch.tensor([[-INF, 0.0, -INF]]), torch.tensor([[0.0, 0.7, 0.3]])
    plain = F.kl_div(x, target, reduction="none")
    assert torch.isnan(plain[0, 0]), "negative control: 0 log 0 - 0 * -inf"
    with instrument.stable("1.0.0", profile="guard"):
        guarded = F.kl_div(x, target, reduction="none")
    assert guarded[0, 0] == 0.0
    assert guarded[0, 1] == plain[0, 1]
    assert torch.isfinite(guarded[0, 2])


def test_ctc_sequence_by_sequence_is_left_to_who_only_looks():
    arguments = torch.zeros(2, 1, 3).log_softmax(-1), torch.tensor([[1, 1]]), torch.tensor([2]), torch.tensor([2])
    with instrument.stable("1.0.0", profile="guard") as run:
        assert torch.isinf(F.ctc_loss(*arguments, reduction="none")).all(), "there is no alignment: that is the answer"
    assert run.events == ()


def test_ctc_without_an_alignment():
    torch.manual_seed(0)
    log_probs = torch.randn(4, 2, 5).log_softmax(-1).requires_grad_()
    targets = torch.tensor([[1, 1, 2, 2], [1, 2, 0, 0]])
    arguments = (log_probs, targets, torch.tensor([4, 4]), torch.tensor([4, 2]))
    assert torch.isinf(F.ctc_loss(*arguments)), "negative control"
    with instrument.stable(profile="guard"):
        loss = F.ctc_loss(*arguments)
        loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(log_probs.grad).all()


def test_leave_and_observe_alter_nothing():
    for settings in ({"profile": "observe"}, {"losses": {"nonfinite_elements": "leave"}}):
        with instrument.stable(**settings):
            assert not torch.isfinite(F.cross_entropy(logits(), TARGET))


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "binary_cross_entropy_with_logits"])
def test_finite_losses_are_bitwise_torchs(name):
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    target = torch.randint(3, (5,)) if name == "cross_entropy" else torch.rand(5, 3)
    plain = getattr(F, name)(x, target)
    with instrument.stable(profile="train") as run:
        assert torch.equal(getattr(F, name)(x, target), plain)
    assert run.events == ()


@pytest.mark.parametrize("need_weights", [True, False])
def test_fused_attention_of_a_sequence_that_is_all_padding(need_weights):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        attention.out_proj.bias.normal_()
        x = torch.randn(2, 4, 8)
        padding = torch.tensor([[False] * 4, [True] * 4])
        plain, _ = attention(x, x, x, key_padding_mask=padding, need_weights=need_weights)
        assert torch.isnan(plain[1]).any(), "negative control"
        with instrument.stable(profile="guard") as run:
            guarded, weights = attention(x, x, x, key_padding_mask=padding, need_weights=need_weights)
    assert torch.equal(guarded[0], plain[0])
    torch.testing.assert_close(guarded[1], attention.out_proj.bias.expand(4, 8))
    assert weights is None or torch.isfinite(weights).all()
    assert "NS401" in {e.code for e in run.events}
