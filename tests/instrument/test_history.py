"""The history of a run: every step while it is recent, a bounded timeline of the whole run, nothing that JSON cannot say."""

import itertools
import json
import math

import pytest
import torch
from torch import nn

import instrument
from instrument.history import MOST_RECORDS, History, StepRecord, learning_rate, read_timeline, write_timeline
from latent_drift.errors import UsageError


def optimizer_with(*rates):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def fill(history, steps, optimizer, notable=()):
    for step in range(1, steps + 1):
        history.loss, history.norm = 1.0 / step, float(step)
        if step in notable:
            history.outcome = "clipped"
        history.finish_step(step, optimizer)


def test_losses_norms_rates_and_outcomes_of_a_run_are_those_of_the_script():
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    losses = []
    with instrument.stable(profile="guard", gradient={"clip": {"kind": "norm", "max_norm": 4.0}}) as run:
        optimizer = torch.optim.SGD([p], lr=0.5)
        for factor in (1.0, 0.1, math.nan, 0.2):
            optimizer.zero_grad()
            loss = (p * p).sum() * 0.5 * factor
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5
    records = list(run.history)
    assert [r.step for r in records] == [1, 2, 3, 4]
    assert [r.outcome for r in records] == ["clipped", "stepped", "skipped", "stepped"]
    assert [r.learning_rate for r in records] == [0.5, 0.25, 0.125, 0.0625]
    assert [r.loss for r in records] == pytest.approx(losses, nan_ok=True)
    assert records[0].gradient_norm == pytest.approx(5.0), "before clipping"
    assert math.isnan(records[2].gradient_norm)
    assert records[0].seconds < records[3].seconds
    assert run.history.recent(optimizer) == records


def test_updates_by_hand_are_recorded():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    with instrument.stable(profile="guard") as run:
        for factor in (1.0, math.inf):
            w.grad = None
            ((w * w).sum() * 0.5 * factor).backward()
            with torch.no_grad():
                w -= 0.1 * w.grad
    first, second = run.history
    assert (first.step, first.loss, first.gradient_norm, first.learning_rate, first.outcome) == (1, 12.5, 5.0, None, "stepped")
    assert (second.step, second.loss, second.outcome) == (2, math.inf, "zeroed")
    assert not math.isfinite(second.gradient_norm)


def test_with_two_optimizers_each_has_its_own_past():
    a, b = optimizer_with(0.1), optimizer_with(0.2)
    history = History(length=8)
    for step in range(1, 20):
        for optimizer, loss in ((a, 1.0), (b, 2.0)):
            history.loss = loss
            history.finish_step(step, optimizer)
    assert {r.loss for r in history.recent(a)} == {1.0}
    assert [r.step for r in history.recent(b)] == list(range(12, 20))
    assert [r.loss for r in history][-2:] == [1.0, 2.0]


@pytest.mark.parametrize("length", [1, 64, 10_000])
def test_a_long_run_is_thinned_evenly_and_keeps_what_was_done(length):
    history, optimizer = History(length=length), optimizer_with(0.1)
    done = set(range(1_000, 100_000, 1_000))
    fill(history, 100_000, optimizer, notable=done)
    steps = [r.step for r in history]
    assert len(steps) <= max(MOST_RECORDS, length + MOST_RECORDS)
    assert len(history) == len(steps)
    assert steps == sorted(set(steps))
    assert {r.step for r in history if r.outcome == "clipped"} == done
    assert steps[0] == 1
    assert steps[-1] == 100_000
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 128, "no hole in it"


def test_with_more_interventions_than_room_they_too_are_thinned():
    history, optimizer = History(length=64), optimizer_with(0.1)
    fill(history, 50_000, optimizer, notable=range(1, 50_001))
    assert len(history) <= MOST_RECORDS
    assert all(r.outcome == "clipped" for r in history)


def test_a_timeline_is_strict_json_and_reads_back(tmp_path):
    records = [
        StepRecord(1, 1.5, math.inf, 0.1, "clipped", 0.25),
        StepRecord(2, math.nan, -math.inf, None, "skipped", 0.5),
        StepRecord(3, None, None, None, "stepped", 0.75),
    ]
    path = tmp_path / "timeline.jsonl"
    write_timeline(records, path)

    def refuse(constant):
        raise AssertionError(constant)

    documents = [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]
    assert documents[1]["loss"] == "nan"
    assert repr(read_timeline(path)) == repr(records)  # repr, since NaN is not equal to itself
    path.write_text(records[0].as_json() + "\n{}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"timeline\.jsonl:2"):
        read_timeline(path)
    with pytest.raises(UsageError, match="--report"):
        read_timeline(tmp_path / "missing.jsonl")


def test_a_run_saves_its_timeline(tmp_path):
    with instrument.stable(profile="guard") as run:
        optimizer = optimizer_with(0.1)
        optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
        optimizer.step()
    run.save(tmp_path)
    assert read_timeline(tmp_path / "timeline.jsonl") == list(run.history)
    assert len(run.history) == 1


@pytest.mark.parametrize(
    ("rates", "expected"),
    [((0.1, 0.3, 0.2), 0.3), ((1,), 1.0), ((torch.tensor(0.25),), 0.25), ((0.1, math.nan), math.nan), ((-0.1,), -0.1)],
)
def test_the_learning_rate_is_the_largest_of_the_groups(rates, expected):
    optimizer = optimizer_with(*([0.0] * len(rates)))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    assert learning_rate(optimizer) == pytest.approx(expected, nan_ok=True)


def test_an_optimizer_without_a_rate_has_none():
    optimizer = optimizer_with(0.1)
    del optimizer.param_groups[0]["lr"]
    assert learning_rate(optimizer) is None


def test_an_optimizer_that_is_gone_leaves_no_ring():
    history = History()
    fill(history, 10, optimizer_with(0.1))
    assert len(history._rings) == 0
    assert len(history) == 10
