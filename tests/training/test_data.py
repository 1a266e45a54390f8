"""Data by specification, and which items a step takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.models.alphabet import encode
from latent_drift.models.log_data import LogDataset
from latent_drift.models.sequences import SyntheticTargetDataset
from latent_drift.training.batches import Batches
from latent_drift.training.data import MESSAGE_LENGTH, TensorData, open_data
from latent_drift.training.log_text import encode_lines


def test_synthetic_data_are_the_library_s_own() -> None:
    tokens, labels = open_data("raccoon", "synthetic:samples=9,seed=4,drift=3", seed=0).batch(range(9))
    expected, classes = LogDataset(9, MESSAGE_LENGTH, 3, seed=4).batch(range(9))
    assert torch.equal(tokens, expected)
    assert torch.equal(labels, classes)
    (sequences,) = open_data("ode", "synthetic", seed=4, samples=5).batch([4, 0])
    own = SyntheticTargetDataset(5, seed=4)
    assert torch.equal(sequences, torch.stack([own[4], own[0]]))


def test_a_file_of_messages(tmp_path: Path) -> None:
    plain = tmp_path / "labelled.tsv"
    plain.write_bytes(b"ERROR\t2026-10-16 10:00:00 disk\tfull\r\n\nwarning\tslow \xff\n")
    tokens, labels = open_data("raccoon", str(plain), 0).batch([0, 1])
    assert labels.tolist() == [0, 1]
    assert torch.equal(tokens, encode_lines(["disk\tfull", "slow \ufffd"], MESSAGE_LENGTH)[0])
    lines = tmp_path / "labelled.jsonl"
    lines.write_text('{"line": 1, "class": "DEBUG", "text": "trace"}\n{"class": null, "text": ""}\n{"class": "INFO", "text": "start"}\n')
    assert open_data("raccoon", str(lines), 0).batch([0, 1])[1].tolist() == [3, 2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_begins_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "labelled.tsv"
    path.write_text("ERROR\tdisk\nINFO\tstart\n", encoding=encoding)
    assert open_data("raccoon", str(path), 0).batch([0, 1])[1].tolist() == [0, 2]


def test_a_file_of_sequences(tmp_path: Path) -> None:
    path = tmp_path / "sequences.txt"
    path.write_text("?A>__\r\n?B>!_\r\n")
    (tokens,) = open_data("ode", str(path), 0).batch([1, 0])
    assert torch.equal(tokens, torch.stack([encode("?B>!_"), encode("?A>__")]))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("raccoon", "ERROR no tab", r"line 1: expected CLASS, a tab and the message; got 'ERROR no tab'"),
        ("raccoon", "INFO\tfine\nFATAL\tbad", r"line 2: the class must be one of ERROR, WARNING, INFO, DEBUG; got 'FATAL'"),
        ("raccoon", "\n\n", r"holds no message"),
        ("ode", "?A>\n?B>_\n", r"line 2: has 4 characters, the lines before it 3; pad them with '_'"),
        ("ode", "?A>\n?b>\n", r"line 2: encode: 'b' at position 1 is not one of the 30 characters"),
        ("ode", "", r"holds no sequence"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_by_line(tmp_path: Path, kind: str, content: str, message: str) -> None:
    path = tmp_path / "data.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"--data .*data\.txt.*{message}"):
        open_data(kind, str(path), 0)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "line 1: is no JSON"), ('{"class": "INFO"}', r"line 1: expected \{"), ("[1]", r"line 1: expected \{")]
)
def test_json_lines_that_cannot_be_used_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        open_data("raccoon", str(path), 0)


@pytest.mark.parametrize(
    ("kind", "specification", "message"),
    [
        ("ode", "synthetic:sampels=3", r"'sampels' is no argument of the synthetic data. Did you mean samples\?"),
        ("ode", "synthetic:drift=3", r"'drift' is no argument"),
        ("raccoon", "synthetic:samples=-1", r"samples must be a whole number of at least 0; got '-1'"),
        ("raccoon", "synthetic:samples", r"samples must be a whole number"),
        ("raccoon", "synthetic:seed=1.5", r"seed must be a whole number"),
        ("raccoon", "nowhere.tsv", r"is no file; give a file, or synthetic\[:samples=N,seed=N,drift=N\]"),
        ("ode", ".", r"is a directory; give a file, or synthetic\[:samples=N,seed=N\]"),
    ],
)
def test_a_specification_that_is_none_is_refused(kind: str, specification: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_data(kind, specification, 0)


def items(count: int) -> TensorData:
    return TensorData((torch.arange(count),))


def test_each_time_through_takes_every_item_once_in_a_new_order() -> None:
    batches = Batches(items(30), 6, seed=1)
    rounds = [[i for step in range(5 * turn, 5 * turn + 5) for i in batches.indices(step)] for turn in range(3)]
    assert all(sorted(order) == list(range(30)) for order in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert rounds[0] != sorted(rounds[0])


def test_a_batch_may_run_over_the_end_and_be_larger_than_the_data() -> None:
    batches = Batches(items(4), 10, seed=1)
    assert Counter(batches.indices(0) + batches.indices(1)) == dict.fromkeys(range(4), 5)


def test_a_step_s_items_depend_on_seed_and_step_alone() -> None:
    forward, backward = Batches(items(20), 3, seed=5), Batches(items(20), 3, seed=5)
    steps = range(30)
    ahead = [forward.indices(step) for step in steps]
    assert [backward.indices(step) for step in reversed(steps)] == ahead[::-1]
    assert Batches(items(20), 3, seed=6).indices(0) != ahead[0] or Batches(items(20), 3, seed=6).indices(1) != ahead[1]


def test_ranks_share_a_batch_in_order() -> None:
    whole = Batches(items(20), 6, seed=2)
    parts = [Batches(items(20), 6, seed=2, rank=rank, ranks=3) for rank in range(3)]
    for step in range(8):
        assert torch.equal(torch.cat([part.at(step)[0] for part in parts]), whole.at(step)[0])


def test_no_data_are_refused() -> None:
    with pytest.raises(UsageError, match="--data has no items"):
        Batches(items(0), 1, 0)
