"""A run's folder: written and read again, of one process and of several, complete and cut short."""

import json
import math
import multiprocessing

import pytest
import torch

import instrument
from instrument.report import folder as report_folder
from instrument.report.fixes import Fixes
from latent_drift.errors import UsageError
from tests.instrument.report.recorded import event, write_folder


@pytest.fixture(autouse=True)
def no_fixes(monkeypatch):
    """The diffs are made by a process of their own, which has its tests; here it would only take time."""
    monkeypatch.setattr("instrument.report.fixes.find", lambda folder, events: Fixes())


def train(steps=12, bad=(5,)):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = (model(torch.randn(8, 3)) ** 2).mean()
        if step in bad:
            loss = loss * math.inf
        loss.backward()
        optimizer.step()


def test_what_a_run_saves_is_what_is_read(tmp_path):
    with instrument.stable(profile="guard") as run:
        train()
    assert run.save(tmp_path / "deep" / "out") == tmp_path / "deep" / "out"
    report = report_folder.read(tmp_path / "deep" / "out")
    (one,) = report.recordings
    assert report.events == run.events
    assert report.first_cause == run.first_cause
    assert [r.step for r in one.timeline] == list(range(1, 13))
    assert math.isnan(one.timeline[5].loss) or math.isinf(one.timeline[5].loss)
    assert one.timeline[5].outcome == "skipped"
    assert one.facts["state"] == "finished"
    assert one.facts["steps"] == 12
    names = one.layers.names
    assert names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert one.layers.steps == (0, 1, 3, 5, 7), "1, 2, 4, 8 steps in, and the one that went bad"
    column = [row[one.layers.steps.index(5)] for row in one.layers.norms]
    assert all(not math.isfinite(value) for value in column)
    assert report.table() == run.summary()
    for path in (tmp_path / "deep" / "out").glob("*.json*"):
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("lost", ["summary.json", "timeline.jsonl", "layers.json", "sources.json", "events.jsonl"])
def test_a_folder_that_lacks_a_file_is_read_as_far_as_it_goes(tmp_path, lost):
    write_folder(tmp_path)
    (tmp_path / lost).unlink()
    report = report_folder.rebuild(tmp_path)
    assert report.facts["steps"] == 40
    assert bool(report.events) is (lost != "events.jsonl")
    assert "<html" in (tmp_path / "report.html").read_text()
    if lost in ("summary.json", "timeline.jsonl"):
        assert lost in report.recordings[0].notes[0]
    assert "40 optimizer steps" in report.table()


def test_a_folder_without_a_report_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"neither events\.jsonl nor summary\.json"):
        report_folder.read(tmp_path)
    with pytest.raises(UsageError, match="nowhere"):
        report_folder.read(tmp_path / "nowhere")
    (tmp_path / "events.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match=r"events\.jsonl:1"):
        report_folder.read(tmp_path)


def test_several_processes_are_one_report_that_names_the_rank(tmp_path):
    write_folder(
        tmp_path, rank=0, interventions=5, first_cause="train.py:77", first_cause_code="NS506", steps=38, events=[event("NS506", line=77, step=9)]
    )
    write_folder(tmp_path, rank=1, interventions=7, steps=40, state="ended by RuntimeError: boom")
    report = report_folder.rebuild(tmp_path)
    assert [one.rank for one in report.recordings] == [0, 1]
    assert {(e.code, e.rank) for e in report.events} == {("NS506", 0), ("NS401", 1)}
    assert report.facts["interventions"] == 12
    assert report.facts["steps"] == 40
    assert report.first_cause.rank == 1, "the earliest cause of any process"
    assert "rank 1: ended by RuntimeError" in report.facts["state"]
    assert "train.py:48 (rank 1)" in report.table()
    assert "rank 1" in (tmp_path / "report.html").read_text()
    joint = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {e["rank"] for e in joint} == {0, 1}
    assert report_folder.read(tmp_path).events == report.events, "the joint files are not taken for a third process"


def test_a_process_that_left_nothing_is_named(tmp_path):
    write_folder(tmp_path, rank=0)
    (tmp_path / "rank-1").mkdir()
    report = report_folder.rebuild(tmp_path)
    assert report.facts["silent_ranks"] == [1]
    assert "Nothing was left by rank 1" in (tmp_path / "report.html").read_text()


def _save_as(rank, world, folder, seed):
    import os

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    with instrument.stable(profile="guard") as run:
        train(bad=(5,) if rank == 1 else ())
    run.save(folder)


def test_processes_that_save_at_the_same_moment_leave_one_whole_report(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_save_as, args=(rank, 3, tmp_path, 0)) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    report = report_folder.read(tmp_path)
    assert report.facts["ranks"] == [0, 1, 2]
    assert {e.rank for e in report.events} == {1}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ranks"] == [0, 1, 2]
    assert not list(tmp_path.glob("**/*.partial"))


def test_a_smaller_job_into_the_same_folder_forgets_the_larger_one(tmp_path, monkeypatch):
    for rank in range(4):
        write_folder(tmp_path, rank=rank)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with instrument.stable() as run:
        train(3, ())
    run.save(tmp_path)
    assert report_folder.read(tmp_path).facts["ranks"] == [0, 1]
    monkeypatch.delenv("WORLD_SIZE")
    with instrument.stable() as run:
        train(3, ())
    run.save(tmp_path)
    assert report_folder.read(tmp_path).recordings[0].rank is None
    assert not list(tmp_path.glob("rank-*"))


def test_a_folder_of_somebody_elses_named_like_a_rank_is_left_alone(tmp_path):
    (tmp_path / "rank-7").mkdir()
    (tmp_path / "rank-7" / "notes.txt").write_text("mine")
    with instrument.stable() as run:
        train(2, ())
    run.save(tmp_path)
    assert (tmp_path / "rank-7" / "notes.txt").read_text() == "mine"
