"""The graph of a failing loss names the node; the next step's graph, whose lines are known, its line. A rare fault is found when it first occurs."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import instrument
from instrument.events import Site
from instrument.locate.graph import nodes_behind, suspect_behind

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


def line_of(text):
    found = [i for i, line in enumerate(LINES, start=1) if line.endswith(f"# {text}")]
    assert len(found) == 1, text
    return found[0]


def suspect_of(loss):
    assert not torch.isfinite(loss), "negative control"
    return suspect_behind([loss], step=0)


def test_data_beside_the_graph_is_told_from_an_overflow_in_it():
    lin = nn.Linear(3, 1)
    target = torch.zeros(8, 1)
    target[[2, 5]] = math.nan
    suspect = suspect_of((lin(torch.ones(8, 3)) - target).pow(2).mean())
    assert suspect.code == "NS803"
    assert "target" in suspect.message
    assert "in 2 of 8 rows (2, 5)" in suspect.message
    assert "NaN" in suspect.message


def test_data_that_goes_in_is_named_with_its_variable_and_rows():
    lin = nn.Linear(3, 1)
    batch = {"image": torch.ones(8, 3)}
    batch["image"][3, 1] = math.inf
    batch["image"][6, 0] = math.nan
    suspect = suspect_of(lin(batch["image"]).mean())
    assert (suspect.code, suspect.op) == ("NS803", "addmm")
    assert "batch['image']" in suspect.message
    assert "NaN and Inf in 2 of 8 rows (3, 6), first at (3, 1)" in suspect.message
    assert suspect.facts["shape"] == (8, 3)
    assert (suspect.facts["nan"], suspect.facts["inf"]) == (1, 1)


def test_a_parameter_is_named_as_one():
    lin = nn.Linear(3, 1)
    with torch.no_grad():
        lin.weight[0, 2] = math.nan
    suspect = suspect_of(lin(torch.ones(8, 3)).mean())
    assert suspect.code == "NS804"
    assert "weight" in suspect.message


@pytest.mark.parametrize(
    ("make", "op", "kind"),
    [
        (lambda w: ((w * 1e30) * (w * 1e30)).tanh().sum() * math.inf, "mul", "Inf"),
        (lambda w: ((w * 1e30) ** 2 * 0.5 - w).mean(), "pow", "Inf"),
        (lambda w: (torch.outer(w, w * 1e20) @ (w * 1e20)).sum() * 1e-20, "mv", "Inf"),
        (lambda w: nn.functional.softmax(w + torch.full((3,), -math.inf), 0).sum(), "softmax", "NaN"),
        # what saved too little to be judged by itself stands before what is at fault
        (lambda w: (-0.5 * (w / 3).square() - torch.log(w.relu() * 0.0)).sum(), "log", "Inf"),
        (lambda w: 2.0 * w.sin().sum() + torch.digamma(w - 1.0).sum(), "digamma", "Inf"),
        (lambda w: ((w + w.cos()).sum() * 1e20 * (1e20 * w)).mean(), "mul", "Inf"),
    ],
)
def test_the_first_node_that_made_a_bad_number(make, op, kind):
    w = nn.Parameter(torch.ones(3))
    suspect = suspect_of(make(w))
    assert suspect.op == op
    assert kind in suspect.message
    assert suspect.facts["parameters"] == ("w",)


def test_a_mask_of_infinities_is_not_blamed_where_something_else_was_made():
    w = nn.Parameter(torch.ones(3))
    mask = torch.tensor([0.0, -math.inf, 0.0])
    scores = (w + mask).softmax(0)
    suspect = suspect_of(((scores * 1e30) ** 2).sum())
    assert suspect.op == "pow"


def test_what_a_checkpoint_packed_away_is_left_packed():
    calls = []

    def block(x):
        calls.append(1)
        return (x * 1e30) ** 2

    w = nn.Parameter(torch.ones(3))
    suspect = suspect_of(checkpoint(block, w, use_reentrant=False).sum())
    assert suspect is not None
    assert len(calls) == 1, "reading the graph must not run the script's code again"


def test_a_node_is_found_again_in_a_graph_with_other_nodes_before_or_after_it():
    w = nn.Parameter(torch.ones(3))
    suspect = suspect_of(((w * 1e30) ** 2).sum())
    for build in (lambda x: (x**2).sum(), lambda x: ((x + 1).exp() ** 2).sum(), lambda x: (x**2).sum().sqrt() * 2):
        other = build(w * 2.0)
        nodes = nodes_behind([other])
        places = {node: (Site("f.py", i, "f"), None) for i, node in enumerate(nodes)}
        (site, _) = suspect.place_in(nodes, places, lambda x: None)
        assert nodes[site.line].name() == "PowBackward0"
    assert suspect.place_in(nodes_behind([w.sin().sum()]), {}, lambda x: None) is None


# In a run ---------------------------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        h = self.inner(x)  # rare: data
        return h * h.flip(1)  # rare: product


def run_rarely(spoil, steps, profile="guard", **overrides):
    torch.manual_seed(0)
    net = Net()
    with instrument.stable(profile=profile, **overrides) as run:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        for step in range(steps):
            x = torch.randn(8, 4)
            spoil(x, step)
            out = net(x)
            loss = out.tanh().mean() + (out - out).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert all(torch.isfinite(p).all() for p in net.parameters())
    return run


def overflow(x, step):
    if step % 200 == 50:
        x.mul_(1e20)


def hole(x, step):
    if step % 200 == 50:
        x[5, 2] = math.nan


@pytest.mark.parametrize(("spoil", "mark", "code"), [(overflow, "rare: product", "NS805"), (hole, "rare: data", "NS803")])
def test_a_rare_fault_is_located_at_its_first_occurrence(spoil, mark, code):
    run = run_rarely(spoil, steps=60)
    cause = run.first_cause
    assert (cause.file, cause.line, cause.code) == (__file__, line_of(mark), code), run.summary()
    assert cause.step == 50, "the step that failed, not the one that was watched"
    assert cause.shape == (8, 4)
    assert cause.dtype == "float32"
    assert cause.source == LINES[cause.line - 1].split("#")[0].strip() + f"  # {mark}"
    assert cause.parameters
    assert run.search.watch.steps <= 3
    assert torch._C._len_torch_function_stack() == 0
    if code == "NS803":
        assert "the data x of shape (8, 4) holds NaN in 1 of 8 rows (5), first at (5, 2)" in cause.message
    assert cause.module == {"NS803": "inner", "NS805": "Net"}[code]


def test_a_rare_fault_is_located_again_and_again_and_counts_as_one():
    run = run_rarely(hole, steps=860)
    (event,) = [e for e in run.events if e.code == "NS803"]
    assert event.steps == (50, 250, 450, 650, 850)
    assert event.line == line_of("rare: data")


def test_the_last_step_of_a_run_is_done_once_more():
    run = run_rarely(hole, steps=51)
    cause = run.first_cause
    assert (cause.code, cause.line) == ("NS803", line_of("rare: data"))
    assert "in 1 of 8 rows (5)" in cause.message
    assert run.search.watch.steps == 0


def test_what_cannot_be_done_once_more_has_no_line_and_says_so(monkeypatch):
    monkeypatch.setattr("instrument.locate.replay.MOST_REPLAYS", 0)
    cause = run_rarely(hole, steps=51).first_cause
    assert cause.code == "NS803"
    assert "no later step showed it" in cause.message
    assert "in 1 of 8 rows (5)" in cause.message


def test_without_a_budget_nothing_is_watched():
    run = run_rarely(hole, steps=60, anomaly={"watch_steps": 0})
    assert run.search.watch.steps == 0
    assert run.first_cause.code == "NS803"


def test_a_failure_that_nothing_explains_does_not_watch_for_ever():
    p = nn.Parameter(torch.ones(3))
    with instrument.stable(profile="guard", anomaly={"watch_steps": 1}, gradient={"max_consecutive_skips": 10_000}) as run:
        optimizer = torch.optim.SGD([p], lr=0.1)
        for _ in range(100):
            p.grad = torch.full((3,), math.nan)
            optimizer.step()
    assert 0 < run.search.watch.steps <= 20
    assert torch._C._len_torch_function_stack() == 0


def test_a_graph_that_cannot_be_read_does_not_stop_the_script(monkeypatch, caplog):
    def refuse(*args):
        raise RuntimeError("an extension's node")

    monkeypatch.setattr("instrument.locate.suspects.suspect_behind", refuse)
    run = run_rarely(hole, steps=55)
    assert run.tally.steps == 55
    assert "could not be read" in caplog.text


def test_a_parameter_that_was_loaded_bad_is_named_at_the_line_that_loaded_it():
    state = nn.Linear(3, 1).state_dict()
    state["weight"] = torch.tensor([[1.0, math.nan, 2.0]])
    net = nn.Linear(3, 1)
    with instrument.stable() as run:
        net.load_state_dict(state)  # loaded
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(4, 3)).mean().backward()
            optimizer.step()
    cause = run.first_cause
    assert (cause.code, cause.line) == ("NS804", line_of("loaded")), run.summary()
    assert "the parameter weight of shape (1, 3) holds NaN" in cause.message
    assert torch.isfinite(net.weight).all()
    assert any(e.code == "NS804" and e.action == "repaired" for e in run.events)


def test_infinities_that_are_loaded_and_do_no_harm_are_no_event():
    net = nn.Linear(3, 1)
    net.register_buffer("mask", torch.tensor([0.0, -math.inf, 0.0]))
    with instrument.stable(profile="guard") as run:
        net.load_state_dict(net.state_dict())
        net((torch.ones(4, 3) + net.mask).softmax(1)).mean().backward()
    assert run.events == ()


def test_a_line_whose_infinities_went_well_before_is_named_and_mended_when_one_does_not():
    w = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))
    optimizer = torch.optim.SGD([w], lr=0.01)
    losses = []
    with instrument.stable() as run:
        for step in range(6):
            optimizer.zero_grad()
            weight = -0.5 * (w * 3 - 1) ** 2
            unlikely = torch.log(w.relu() * 0 + torch.tensor([0.0, 1.0, 1.0]))  # left out at first
            score = weight - unlikely
            if step < 3:
                score = torch.where(torch.isinf(score), torch.zeros(3), score)
            loss = score.sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert [math.isfinite(loss) for loss in losses] == [True, True, True, False, True, True]
    assert run.first_cause is not None
    assert (run.first_cause.code, run.first_cause.line, run.first_cause.step) == ("NS205", line_of("left out at first"), 3)
    assert "NS805" not in {event.code for event in run.events}


def test_log_softmax_hands_a_mask_on():
    w = nn.Parameter(torch.ones(2, 3))
    masked = (w * 2.0).masked_fill(torch.tensor([False, False, True]), -math.inf)
    smoothed = torch.full((2, 3), 0.1)
    suspect = suspect_of((-smoothed * masked.log_softmax(1)).sum())
    assert suspect.op == "mul"


def test_what_a_parameter_forbids_is_not_blamed():
    transitions = nn.Parameter(torch.zeros(3, 3))
    transitions.data[2, :] = -math.inf
    feature = nn.Parameter(torch.ones(3))
    scores = transitions + feature
    largest = scores.max(1, keepdim=True).values
    suspect = suspect_of((largest + (scores - largest).exp().sum(1, keepdim=True).log()).sum())  # a row of nothing: -inf - -inf
    assert (suspect.code, suspect.op) == ("NS805", "exp")


def test_an_operation_that_no_guard_covers_is_bounded_once_it_spoils_one_loss_after_the_other():
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    mask, losses = torch.tensor([False, False, True]), []
    with instrument.stable() as run:
        for _ in range(8):
            optimizer.zero_grad()
            logits = net(torch.randn(5, 4)).masked_fill(mask, -math.inf)
            loss = (-0.1 * nn.functional.log_softmax(logits, 1)).mean()  # smoothed over what is masked
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert math.isinf(losses[0]), "negative control"
    assert math.isfinite(losses[-1])
    assert run.first_cause is not None
    assert run.first_cause.line == line_of("smoothed over what is masked")
