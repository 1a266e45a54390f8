"""The table of a run: whole places at every width, prose within it."""

import os
import re

import pytest
from rich.cells import cell_len

from instrument.report.terminal import place, summary_table
from tests.instrument.report.recorded import event, facts

LONG = "/srv/experiments/" + "a_rather_long_folder_name/" * 6 + "train.py"
WIDE = "/srv/実験/モデル/訓練スクリプト.py"
SPACED = "/srv/my experiments/run one/train it.py"
FILES = [LONG, WIDE, SPACED, "train.py"]


def table(files, width):
    events = [event(file=file) for file in files] + [event("NS507", files[0], 77, "clipped", source=None, minimum=-1.0, maximum=2.0, dtype="float32")]
    return summary_table(events, facts(), events[0], width=width)


@pytest.mark.parametrize("width", [20, 40, 80, None])
@pytest.mark.parametrize("file", FILES)
def test_a_place_is_never_wrapped_or_cut(width, file):
    lines = table([file], width).splitlines()
    assert [line for line in lines if re.search(re.escape(f"{file}:48") + r"(?!\d)", line)], "in one piece, on one line"
    if width is not None:
        alone = [line for line in lines if f"{file}:" in line and cell_len(line) > width]
        assert all(line.strip().startswith(file) for line in alone), "where it does not fit it stands alone, at the margin"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_prose_keeps_to_the_width(width):
    kept_whole = {"att = F.softmax(score, dim=-1)"}
    for line in table(["t.py"], width).splitlines():
        short = any(whole in line for whole in kept_whole) or max(cell_len(word) for word in line.split()) > width - 6
        assert short or cell_len(line) <= width, line


def test_a_naive_table_would_break_a_place_at_the_same_width():
    """The control: a table library that fits its columns to the terminal does cut it."""
    import io

    from rich.console import Console
    from rich.table import Table

    page = io.StringIO()
    naive = Table("where", "code")
    naive.add_row(f"{LONG}:48", "NS401")
    Console(file=page, width=40).print(naive)
    assert f"{LONG}:48" not in page.getvalue()


def test_a_pipe_gets_one_line_for_each_thing():
    text = table([LONG], None)
    row = next(line for line in text.splitlines() if f"{LONG}:48" in line)
    assert "NS401" in row
    assert "repaired" in row
    assert "3-9" in row


def test_columns_line_up_although_some_paths_are_wide():
    rows = [line for line in table(["train.py", WIDE], 200).splitlines() if re.search(r":\d+ +NS", line) and "first cause" not in line]
    starts = {cell_len(line[: line.index("NS")]) for line in rows}
    assert len(rows) == 3
    assert len(starts) == 1


def test_paths_below_the_working_directory_are_shown_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place(event(file=str(tmp_path / "a" / "train.py"))) == f"a{os.sep}train.py:48"
    assert place(event(file="/elsewhere/train.py")) == "/elsewhere/train.py:48"


def test_a_rank_is_named_and_a_run_that_was_killed_says_so():
    text = summary_table([event(rank=1)], facts(state="running"), None)
    assert "train.py:48 (rank 1)" in text
    assert "as of its last word" in text
    assert "as of its last word" not in summary_table([event()], facts(), None)
    assert "the run ended by ValueError" in summary_table([event()], facts(state="ended by ValueError: x"), None)


def test_nothing_happened_is_said():
    assert "nothing had to be done in 40 optimizer steps (251 operations were guarded)" in summary_table([], facts(interventions=0), None)


def test_several_optimizers_are_counted_together_too():
    assert summary_table([], facts(steps_of_all_optimizers=40), None).count("of all optimizers") == 0
    assert "40 optimizer steps (80 of all optimizers): " in summary_table([event()], facts(steps_of_all_optimizers=80), None)


@pytest.mark.parametrize("width", [30, 80, None])
def test_the_first_cause_repeats_all_that_is_known_of_it(width):
    cause = event(minimum=-2.5, maximum=88.7, dtype="float32", parameters=("enc.weight", "enc.bias"), trend="the loss grew 3 x a step", step=7)
    text = " ".join(summary_table([cause], facts(), cause, width=width).partition("first cause")[2].split())
    assert f"{cause.op}, step 7: {cause.message}" in text
    assert "in [-2.5, 88.7]" in text
    assert "computed from enc.weight, enc.bias" in text
    assert "before it, the loss grew 3 x a step" in text
    assert "remedy: " in text


def test_a_trend_that_the_message_tells_is_told_once():
    cause = event(message="it overflowed; the loss grew 3 x a step", trend="the loss grew 3 x a step")
    assert summary_table([cause], facts(), cause).partition("first cause")[2].count("the loss grew") == 1
