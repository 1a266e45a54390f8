"""Who follows a run: told of every step and event, between steps; an exception of theirs leaves nothing half done."""

import logging
import math

import pytest
import torch

import instrument


def training(bad=(), steps=6):
    """A generator of steps, so that a test stands between them."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 2)).mean() * (math.nan if step in bad else 1.0)
        loss.backward()
        optimizer.step()
        yield model, optimizer


def test_every_step_and_every_event_is_told_in_order():
    told = []
    with instrument.stable(profile="guard") as run:
        run.subscribe(on_event=lambda e: told.append((e.code, e.count)), on_step=lambda r: told.append(r.step))
        for _ in training(bad=(1, 3)):
            pass
    numbers = [item for item in told if isinstance(item, int)]
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert told.index(("NS506", 1)) < told.index(2), "the events of a step come before its record"
    assert ("NS506", 2) in told
    assert {code for code, _ in (i for i in told if isinstance(i, tuple))} == {e.code for e in run.events}


def test_a_subscriber_that_comes_late_is_told_what_there_is_already():
    told = []
    with instrument.stable(profile="guard") as run:
        for index, _ in enumerate(training(bad=(1,))):
            if index == 4:
                run.subscribe(on_event=lambda e: told.append(e.code))
    assert told.count("NS506") == 1


def test_what_ends_a_subscription_ends_it():
    told = []
    with instrument.stable() as run:
        end = run.subscribe(on_step=lambda r: told.append(r.step))
        for index, _ in enumerate(training()):
            if index == 2:
                end()
                end()
    assert told == [1, 2, 3]


def test_an_exception_leaves_the_step_whole_and_is_the_callers():
    def refuse(record):
        if record.step == 3:
            raise ConnectionError("the tracker is away")

    others = []
    plain = [(float(model.weight.detach()[0, 0]), len(optimizer.state)) for model, optimizer in training()]
    steps = training()
    with instrument.stable(profile="guard") as run:
        run.subscribe(on_step=refuse)
        run.subscribe(on_step=lambda r: others.append(r.step))
        next(steps)
        model, optimizer = next(steps)
        with pytest.raises(ConnectionError, match="away"):
            next(steps)
        assert float(model.weight.detach()[0, 0]) == plain[2][0], "the third step was taken to its end"
        assert all(int(state["step"]) == 3 for state in optimizer.state.values())
        assert run.tally.steps == 3
        assert others == [1, 2, 3], "the others were told all the same"
        optimizer.step()
        assert run.tally.steps == 4


def test_a_skipped_step_that_a_subscriber_raises_at_is_skipped_all_the_same():
    def refuse(event):
        raise RuntimeError("planted")

    steps = training(bad=(1,))
    with instrument.stable(profile="guard") as run:
        model, _ = next(steps)
        before = model.weight.detach().clone()
        run.subscribe(on_event=refuse)
        with pytest.raises(RuntimeError, match="planted"):
            next(steps)
        assert torch.equal(model.weight, before)
        run.subscriptions.subscribers.clear()
    assert run.tally.skipped == 1


def test_what_is_held_apart_is_logged_once_and_dropped(caplog):
    calls = []

    def fail(record):
        calls.append(record.step)
        raise OSError("disk full")

    with caplog.at_level(logging.WARNING, "instrument.subscriptions"), instrument.stable() as run:
        run.subscriptions.add(on_step=fail, apart=True)
        for _ in training():
            pass
    assert calls == [1]
    assert len(caplog.records) == 1
    assert "disk full" in str(caplog.records[0].exc_info[1])


def test_a_subscriber_may_train_something_itself():
    told = []

    def probe(record):
        told.append(record.step)
        for _ in training(steps=2):
            pass

    with instrument.stable() as run:
        run.subscribe(on_step=probe)
        for _ in training(steps=2):
            pass
    assert told[0] == 1
    assert len(told) == 2


def test_updates_by_hand_are_told():
    told = []
    weight = torch.ones(2, requires_grad=True)
    with instrument.stable() as run:
        run.subscribe(on_step=told.append)
        for _ in range(3):
            (weight**2).sum().backward()
            with torch.no_grad():
                weight -= 0.1 * weight.grad
                weight.grad.zero_()
    assert [r.step for r in told] == [1, 2, 3]
    assert told[0].loss == 2.0


def test_the_block_takes_subscribers_too():
    told = []
    with instrument.stable(profile="guard", on_event=told.append, on_step=told.append):
        for _ in training(bad=(1,), steps=2):
            pass
    assert [type(item).__name__ for item in told if not isinstance(item, instrument.Event)] == ["StepRecord", "StepRecord"]
    assert any(isinstance(item, instrument.Event) for item in told)


def test_following_changes_no_bit():
    plain = [model.weight.detach().clone() for model, _ in training()]
    with instrument.stable(profile="guard", on_step=lambda r: None, on_event=lambda e: None):
        followed = [model.weight.detach().clone() for model, _ in training()]
    assert all(torch.equal(a, b) for a, b in zip(plain, followed, strict=True))
