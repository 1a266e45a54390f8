"""Every optimizer's step: skip, zero, raise, record; clip; spoilt updates put back; closures."""

import copy
import inspect
import math

import pytest
import torch
import torch_optimizer
from torch import nn

import instrument
from latent_drift.errors import GiveUpError, NumericalError

TORCH_OPTIMIZERS = [
    c
    for n in sorted(dir(torch.optim))
    if inspect.isclass(c := getattr(torch.optim, n)) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer
]
EXTRA_OPTIMIZERS = [
    c
    for n in sorted(dir(torch_optimizer))
    if inspect.isclass(c := getattr(torch_optimizer, n)) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer
]
ALL = list(dict.fromkeys(TORCH_OPTIMIZERS + EXTRA_OPTIMIZERS))
SPARSE_ONLY = (torch.optim.SparseAdam,)


def build(cls, parameters):
    if cls is torch_optimizer.Lookahead:
        return cls(torch.optim.SGD(parameters, lr=0.05))
    arguments = {"lr": 0.05} if "lr" in inspect.signature(cls).parameters else {}
    if cls is torch.optim.LBFGS:
        arguments = {"lr": 0.5, "max_iter": 4}
    return cls(parameters, **arguments)


def small_model(cls):
    torch.manual_seed(0)
    if cls in SPARSE_ONLY:
        return nn.Embedding(6, 4, sparse=True), torch.tensor([0, 2, 3])
    return nn.Linear(4, 4, bias=cls.__name__ != "Muon"), torch.randn(5, 4)


def run_steps(cls, spoil, steps=4):
    """Losses, parameters and optimizer state after steps; the gradients of step 2 are spoilt with NaN if asked."""
    model, inputs = small_model(cls)
    optimizer = build(cls, model.parameters())
    create_graph = cls.__name__ in ("Adahessian",)
    for index in range(steps):

        def closure(index=index):
            optimizer.zero_grad()
            loss = model(inputs).pow(2).mean()
            if spoil and index == 1:
                loss = loss * math.nan
            loss.backward(create_graph=create_graph)
            return loss

        if cls is torch.optim.LBFGS:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return model, optimizer


def plain_run_is_spoilt(cls):
    try:
        model, optimizer = run_steps(cls, spoil=True)
    except RuntimeError:  # Shampoo's decomposition refuses NaN
        return True
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    bad = not all(torch.isfinite(t).all() for t in [*model.parameters(), *state])
    # Rprop takes the sign of a gradient, and the sign of NaN is 0: it alone survives by itself.
    return bad or cls is torch.optim.Rprop


@pytest.mark.parametrize("cls", ALL, ids=lambda c: f"{c.__module__.split('.')[0]}.{c.__name__}")
@pytest.mark.filterwarnings("ignore")  # some of these use deprecated calls; that is theirs
def test_a_nan_gradient_never_reaches_parameters_or_state(cls):
    assert plain_run_is_spoilt(cls), "negative control"
    with instrument.stable(profile="guard") as run:
        model, optimizer = run_steps(cls, spoil=True)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for state in optimizer.state.values():
        assert all(torch.isfinite(v).all() for v in state.values() if isinstance(v, torch.Tensor) and v.is_floating_point())
    assert {"NS506", "NS508"} & {e.code for e in run.events}
    assert run.tally.skipped >= 1


@pytest.mark.parametrize("cls", ALL, ids=lambda c: f"{c.__module__.split('.')[0]}.{c.__name__}")
@pytest.mark.filterwarnings("ignore")
def test_a_healthy_run_is_bitwise_the_same_under_guard(cls):
    plain, _ = run_steps(cls, spoil=False)
    with instrument.stable(profile="guard") as run:
        guarded, _ = run_steps(cls, spoil=False)
    for a, b in zip(plain.parameters(), guarded.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run.events == ()


def one_step(**config):
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.tensor([math.nan, 0.5])
    with instrument.stable(gradient=config) as run:
        optimizer.step()
    return parameter, optimizer, run


def test_skip_moves_neither_parameters_nor_state():
    parameter, optimizer, run = one_step(nonfinite="skip")
    assert parameter.tolist() == [1.0, 2.0]
    assert not optimizer.state
    assert run.tally.skipped == 1


def test_zero_updates_the_good_elements_only():
    parameter, _, run = one_step(nonfinite="zero")
    assert parameter[0].item() == 1.0
    assert parameter[1].item() < 2.0
    assert [e.action for e in run.events] == ["zeroed"]


def test_raise_raises_and_leaves_parameters():
    with pytest.raises(NumericalError, match="not finite"):
        one_step(nonfinite="raise")


def test_record_alters_nothing():
    parameter, _, run = one_step(nonfinite="record")
    assert torch.isnan(parameter[0])
    assert [e.action for e in run.events] == ["observed"]


def test_the_event_names_the_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    model[1].weight.grad[0, 0] = math.inf
    with instrument.stable() as run:
        optimizer.step()
    assert "1.weight" in run.events[0].message
    assert "1 of 4" in run.events[0].message


def test_skipping_for_ever_gives_up_with_advice():
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.grad = torch.tensor([math.nan])
    with instrument.stable(gradient={"max_consecutive_skips": 5}) as run:
        for _ in range(4):
            optimizer.step()
        with pytest.raises(GiveUpError, match="max_consecutive_skips"):
            optimizer.step()
    assert run.tally.skipped == 5


def test_several_groups_and_none_gradients():
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a, b]}, {"params": [c], "lr": 1.0}], lr=0.1)
    a.grad, c.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    with instrument.stable(gradient={"clip": {"kind": "norm", "max_norm": 1.0}}) as run:
        optimizer.step()
    torch.testing.assert_close(a.grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(c.grad, torch.tensor([0.0, 0.8]))
    assert b.grad is None
    assert run.events[0].message.startswith("gradient norm 5 clipped to 1")


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ({"kind": "norm", "max_norm": 1.0}, [0.6, 0.8]),
        ({"kind": "norm", "max_norm": 2.0, "norm_type": "inf"}, [1.5, 2.0]),
        ({"kind": "value", "max_value": 3.5}, [3.0, 3.5]),
        ({"kind": "none"}, [3.0, 4.0]),
        ({"kind": "agc", "clipping": 0.5}, [0.3 * math.sqrt(2) * 1.0, 0.4 * math.sqrt(2) * 1.0]),
    ],
    ids=lambda c: c["kind"] if isinstance(c, dict) else "",
)
def test_each_kind_of_clipping(clip, expected):
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    with instrument.stable(gradient={"clip": clip}):
        torch.optim.SGD([parameter], lr=0.0).step()
    torch.testing.assert_close(parameter.grad, torch.tensor(expected))


@pytest.mark.parametrize(
    "kind",
    [{"kind": "adaptive_percentile", "percentile": 90.0, "warmup": 10}, {"kind": "zscore", "threshold": 3.0, "warmup": 10}],
    ids=lambda c: c["kind"],
)
def test_history_clipping_lets_ordinary_steps_pass_and_catches_the_outlier(kind):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    with instrument.stable(gradient={"clip": kind}) as run:
        for _ in range(30):
            parameter.grad = torch.tensor([1.0, 0.0])
            optimizer.step()
        assert run.tally.clipped == 0
        parameter.grad = torch.tensor([1000.0, 0.0])
        optimizer.step()
    assert run.tally.clipped == 1
    assert parameter.grad[0].item() == pytest.approx(1.0, rel=1e-4)


def test_a_gradient_that_the_script_clipped_itself_is_not_clipped_twice():
    torch.manual_seed(0)
    model = nn.Linear(300, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with instrument.stable(profile="train") as run:
        for _ in range(20):
            optimizer.zero_grad()
            (model(torch.randn(8, 300)).pow(2).sum() * 10).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert run.events == ()


def test_float16_adam_whose_epsilon_is_zero_there():
    def train():
        parameter = nn.Parameter(torch.ones(3, dtype=torch.float16))
        optimizer = torch.optim.Adam([parameter], lr=1e-2, eps=1e-8, foreach=False)
        parameter.grad = torch.tensor([1e-4, 0.0, 1.0], dtype=torch.float16)
        optimizer.step()
        return parameter

    assert not torch.isfinite(train()).all(), "negative control: 0 / 0"
    with instrument.stable(profile="guard") as run:
        parameter = train()
    assert torch.isfinite(parameter).all()
    assert parameter[0].item() < 1.0, "it is not only put back: the step was done again with an eps that is not 0"
    assert parameter[1].item() == 1.0
    assert [(e.code, e.action) for e in run.events] == [("NS301", "repaired")]


def test_a_custom_optimizer_that_divides_by_zero_is_put_back():
    class Normalised(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})
            self.calls = 0

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad / p.grad.norm()

    parameter = nn.Parameter(torch.ones(2))
    with instrument.stable() as run:
        optimizer = Normalised([parameter])
        parameter.grad = torch.zeros(2)
        optimizer.step()
        assert torch.equal(parameter.detach(), torch.ones(2))
        parameter.grad = torch.tensor([1.0, 0.0])
        optimizer.step()
        assert parameter[0].item() < 1.0
    assert [e.code for e in run.events if e.repaired] == ["NS508"]


def test_infinite_learning_rate_does_not_reach_the_parameters():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=math.inf)
    parameter.grad = torch.tensor([1.0, 0.0])
    with instrument.stable() as run:
        optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(2))
    assert "learning rate of inf" in run.events[0].message
    assert not optimizer.state


def test_optimizer_state_loaded_with_nan_is_caught_at_the_first_step():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.ones(2)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg"][0] = math.nan
    optimizer.load_state_dict(state)
    before = parameter.detach().clone()
    with instrument.stable(profile="guard") as run:
        optimizer.step()
    assert (parameter.detach() < before).all(), "the other elements and this one go on"
    assert (parameter.detach() > before - 0.2).all()
    assert all(torch.isfinite(v).all() for v in optimizer.state[parameter].values())
    assert [(e.code, e.action) for e in run.events] == [("NS807", "zeroed")]


def test_sparse_gradients_with_nan_are_skipped():
    embedding = nn.Embedding(5, 2, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
    (embedding(torch.tensor([1, 3])).sum() * math.nan).backward()
    with instrument.stable():
        optimizer.step()
    assert torch.equal(embedding.weight.detach(), before)


def test_sam_like_closure_whose_second_gradient_goes_bad_is_put_back():
    class Sam(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"rho": 0.05})
            self.base = torch.optim.SGD(self.param_groups, lr=0.1)

        @torch.no_grad()
        def step(self, closure):
            with torch.enable_grad():
                closure()
            perturbations = []
            for group in self.param_groups:
                for p in group["params"]:
                    e = group["rho"] * p.grad / (p.grad.norm() + 1e-12)
                    p.add_(e)
                    perturbations.append((p, e))
            with torch.enable_grad():
                closure()
            for p, e in perturbations:
                p.sub_(e)
            self.base.step()

    parameter = nn.Parameter(torch.ones(2))
    before = parameter.detach().clone()
    calls = []
    with instrument.stable(profile="guard") as run:
        optimizer = Sam([parameter])

        def closure():
            calls.append(1)
            optimizer.zero_grad()
            loss = parameter.pow(2).sum() * (math.nan if len(calls) == 2 else 1.0)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert torch.allclose(parameter.detach(), before, atol=1e-6)
    assert {e.code for e in run.events} >= {"NS506"}


def test_user_subclass_calling_super_is_judged_once():
    class Logged(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    parameter = nn.Parameter(torch.ones(2))
    with instrument.stable(profile="train") as run:
        optimizer = Logged([parameter], lr=0.1)
        parameter.grad = torch.tensor([30.0, 40.0])
        optimizer.step()
    assert [(e.code, e.count) for e in run.events] == [("NS507", 1)]
    assert run.tally.steps == 1


def test_lr_scheduler_built_before_the_block():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    parameter.grad = torch.tensor([math.nan, 1.0])
    with instrument.stable() as run:
        optimizer.step()
        scheduler.step()
    assert torch.equal(parameter.detach(), torch.ones(2))
    assert run.tally.skipped == 1


def test_the_update_itself_is_bounded_where_the_config_asks():
    def train(**settings):
        parameter = nn.Parameter(torch.full((4,), 2.0))
        optimizer = torch.optim.Adam([parameter], lr=100.0)
        with instrument.stable(**settings) as run:
            parameter.grad = torch.full((4,), 1e-3)
            optimizer.step()
        return parameter.detach(), run

    plain, _ = train(profile="guard")
    assert plain[0].item() == pytest.approx(-98.0, rel=1e-4), "negative control: a tiny gradient, a huge step"
    bounded, run = train(gradient={"update_bound": {"kind": "ratio", "max_ratio": 0.05}})
    assert bounded.tolist() == pytest.approx([1.9] * 4)
    assert [e.code for e in run.events] == ["NS512"]


def test_a_closure_of_torchs_own_optimizers_is_judged_before_anything_is_touched(monkeypatch):
    """As lightning steps: no copy of the parameters is made, and a bad gradient leaves parameters, state and closure's calls alone."""
    from instrument.guards import step

    copies = []
    monkeypatch.setattr(step, "StepSnapshot", lambda optimizer: copies.append(optimizer))
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = (parameter * (float("nan") if len(calls) == 1 else 1.0)).sum()
        loss.backward()
        calls.append(loss)
        return loss

    with instrument.stable(profile="guard") as run:
        optimizer.step(closure)
        before, moments = parameter.detach().clone(), optimizer.state[parameter]["exp_avg"].clone()
        returned = optimizer.step(closure)
        assert returned is calls[1]
        assert torch.equal(parameter, before)
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments)
        assert optimizer.state[parameter]["step"] == 1
        optimizer.step(closure)
    assert len(calls) == 3
    assert not torch.equal(parameter, before)
    assert copies == []
    assert run.tally.skipped == 1
    assert "NS506" in {event.code for event in run.events}
