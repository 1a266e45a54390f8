"""--from-report: only what fired, where it is now, and a word on what could not be placed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patches.errors import ReportError
from patches.firing import Firing, assign_files, place, read_firings
from patches.runner import Job, Patched, process
from patches.settings import Settings

TEXT = """import torch


def encode(x, fc):
    logvar = fc(x)
    return torch.exp(0.5 * logvar)


def other(x, fc):
    logvar = fc(x)
    return torch.exp(logvar)


def soft(x):
    return torch.log(torch.softmax(x, -1))
"""


def _report(folder: Path, *events: dict) -> Path:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return out


def _event(path: Path, line: int, code: str = "NS201", source: str | None = None) -> dict:
    text = source if source is not None else TEXT.splitlines()[line - 1].strip()
    return {"code": code, "file": str(path), "line": line, "source": text, "op": "exp", "count": 3}


def _patch(path: Path, out: Path, unsafe: bool = True) -> Patched:
    placed, _ = assign_files(read_firings(out), [path])
    outcome = process(Job(path, path.name, Settings(unsafe=unsafe), True, tuple(placed.get(path, ()))))
    assert isinstance(outcome, Patched)
    return outcome


def test_only_the_line_that_fired_is_mended_although_its_fix_is_another_line(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TEXT)
    done = _patch(path, _report(tmp_path, _event(path, 6)))
    new = done.after.decode()
    assert new.count("softplus") == 2
    assert new.index("softplus") < new.index("def other")
    assert "torch.log(torch.softmax(x, -1))" in new
    assert not done.notes


def test_the_line_decides_before_the_code(tmp_path):
    """A run may call it nonfinite-result where the source rule is exp-logvar."""
    path = tmp_path / "train.py"
    path.write_text(TEXT)
    new = _patch(path, _report(tmp_path, _event(path, 11, code="NS805"))).after.decode()
    assert "softplus" in new[new.index("def other") :]
    assert "softplus" not in new[: new.index("def other")]


def test_a_line_that_moved_is_followed_when_its_text_is_unique(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("# one\n# two\n" + TEXT)
    done = _patch(path, _report(tmp_path, _event(path, 6)))
    assert "softplus" in done.after.decode()
    assert "train.py:6: NS201 fired there; the line is line 8 now" in done.notes


def test_a_line_that_is_gone_or_ambiguous_is_left_alone_and_said(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TEXT.replace("0.5 * logvar", "0.5*logvar"))
    done = _patch(path, _report(tmp_path, _event(path, 6)))
    assert done.after == done.before
    assert "which is gone; left alone" in done.notes[0]
    path.write_text(TEXT.replace("torch.exp(0.5 * logvar)", "0") + "\n\nreturn_ = 1\n" + "# x\n" * 3)
    ambiguous = _patch(path, _report(tmp_path, _event(path, 1, source="logvar = fc(x)")))
    assert ambiguous.after == ambiguous.before
    assert "is now at lines 5, 10" in ambiguous.notes[0]


def test_what_no_rule_mends_is_said(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TEXT)
    done = _patch(path, _report(tmp_path, _event(path, 5, code="NS805")))
    assert done.notes == ("train.py:5: NS805 fired there; no rule knows a fix for this line",)


def test_unsafe_fixes_need_the_flag_also_for_what_fired(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TEXT)
    done = _patch(path, _report(tmp_path, _event(path, 6)), unsafe=False)
    assert done.after == done.before
    assert [d.code for d in done.remaining] == ["NS201"]


def test_both_of_two_lines_that_share_a_making_are_cured_by_one_bound(tmp_path):
    path = tmp_path / "train.py"
    text = TEXT.replace("    return torch.exp(0.5 * logvar)", "    std = torch.exp(0.5 * logvar)\n    return std + torch.exp(logvar)")
    path.write_text(text)
    lines = text.splitlines()
    events = [_event(path, n, source=lines[n - 1].strip()) for n in (6, 7)]
    assert _patch(path, _report(tmp_path, *events)).after.decode().count("logvar = -30 +") == 1


def test_a_report_from_another_machine_finds_the_file_by_its_tail(tmp_path):
    (tmp_path / "pkg").mkdir()
    paths = [tmp_path / "pkg" / "train.py", tmp_path / "train.py"]
    for path in paths:
        path.write_text(TEXT)
    placed, notes = assign_files([Firing("NS201", "/elsewhere/pkg/train.py", 6, None)], paths)
    assert list(placed) == [paths[0]]
    assert not notes
    _, notes = assign_files([Firing("NS201", "/elsewhere/lib/train.py", 6, None)], paths)
    assert "several files could be meant" in notes[0]


def test_events_without_a_place_are_left_out_and_repeated_ones_merged(tmp_path):
    path = tmp_path / "train.py"
    out = _report(tmp_path, _event(path, 6), _event(path, 6), {"code": "NS803", "file": None, "line": None, "source": None})
    assert read_firings(out) == [Firing("NS201", str(path), 6, "return torch.exp(0.5 * logvar)", 6)]


@pytest.mark.parametrize("content", [None, "not json\n", "[1]\n"])
def test_an_unreadable_report_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "events.jsonl").write_text(content)
    with pytest.raises(ReportError, match=r"events\.jsonl"):
        read_firings(tmp_path)


def test_a_firing_without_source_text_is_taken_at_its_line():
    located = place([Firing("NS201", "train.py", 6, None), Firing("NS201", "train.py", 600, None)], TEXT, "train.py")
    assert located.lines == {6: {"NS201"}}
    assert "the file has 15 lines now" in located.notes[0]


LAST_RESORTS = """import torch
import torch.nn.functional as F


def gan(d, real):
    return -torch.log(d(real)).mean()


def named(p, q):
    h = p * q.sigmoid()
    return torch.log(h)


def stable(x):
    return torch.log(torch.sigmoid(x)).mean()


def rate(eta):
    return torch.exp(eta).mean()


def pooled(h, mask):
    return (h * mask).sum(1) / mask.sum(1)


def scaled(x):
    return x / x.abs().amax()


def signed(x, y):
    return x / y.sum()


def unit(table, index):
    row = table(index).mean(1)
    return row / row.norm(dim=1, keepdim=True)


def standardised(x):
    var = (x**2).mean(0) - x.mean(0) ** 2
    return x / torch.sqrt(var)
"""


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("torch.log(d(real))", "NS205", "torch.log(d(real).clamp(min=torch.finfo(torch.float32).tiny)).mean()"),
        ("torch.log(h)", "NS205", "torch.log(h.clamp(min=torch.finfo(h.dtype).tiny))"),
        ("torch.sigmoid(x)", "NS205", "F.logsigmoid(x).mean()"),  # a stable form is better than a bound
        ("torch.exp(eta)", "NS202", "torch.exp(20 - F.softplus(20 - eta)).mean()"),
        ("mask.sum(1)", "NS304", "(h * mask).sum(1) / mask.sum(1).clamp(min=1)"),
        ("x.abs().amax()", "NS304", "x / x.abs().amax().clamp(min=1e-8)"),
        ("x / y.sum()", "NS304", None),
        ("row / row.norm", "NS303", "F.normalize(row, dim=1, eps=torch.finfo(row.dtype).tiny)"),
        ("torch.sqrt(var)", "NS704", "var = x.var(dim=0, unbiased=False)"),  # where the negative number was made
    ],
)
def test_a_line_that_failed_is_at_least_bounded(text, code, expected, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(LAST_RESORTS)
    lines = LAST_RESORTS.splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if text in line)
    done = _patch(path, _report(tmp_path, _event(path, number, code, lines[number - 1].strip())))
    if expected is None:
        assert done.after == done.before
        assert [d.line for d in done.remaining] == [number]
        return
    assert expected in done.after.decode()
    assert len([d for d in done.applied if d.last_resort]) == ("clamp" in expected or "20 -" in expected)
    assert ("clamp" in done.after.decode()) is ("clamp" in expected)
    compile(done.after, "train.py", "exec", dont_inherit=True)
    untouched = Job(path, path.name, Settings(unsafe=True), True)
    assert ".clamp(min=" not in process(untouched).after.decode()  # without a run nothing says that these lines fail


def test_what_bounds_a_failed_line_is_written_once(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(LAST_RESORTS)
    lines = LAST_RESORTS.splitlines()
    codes = {"torch.log(d(real))": "NS205", "torch.log(h)": "NS205", "torch.exp(eta)": "NS202", "mask.sum(1)": "NS304"}
    events = [_event(path, n, code, lines[n - 1].strip()) for text, code in codes.items() for n, line in enumerate(lines, 1) if text in line]
    done = _patch(path, _report(tmp_path, *events))
    assert len(done.applied) == 4
    path.write_bytes(done.after)
    moved = [{**event, "source": done.after.decode().splitlines()[event["line"] - 1].strip()} for event in events]
    again = _patch(path, _report(tmp_path, *moved))
    assert again.after == done.after
    assert not again.applied
