"""The table at the end of a run. `file.py:line` is never wrapped or cut, however narrow the terminal or the pipe."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from instrument.events import Event
from instrument.report.sources import Lines, excerpt
from patches.findings import FINDINGS

_NARROWEST_TEXT = 16
"""Columns below which prose is not wrapped any further."""

UNSEEN = "compiled code was not watched inside"
NOT_WIDENED = "compiled code: softmax.upcast reaches torch.softmax there, not Tensor's methods nor torch.nn.functional, and amp.float32_ops nothing"

_OTHER_CELLS = 2 + 2 + 5 + 2 + 20 + 2 + 11 + 2 + 6 + 2 + 9
"""Columns of a row beside its place."""


def shown_path(file: str) -> str:
    """The path as a person would type it: relative to the working directory where that is shorter."""
    try:
        relative = os.path.relpath(file)
    except ValueError:  # another drive
        return file
    return relative if not relative.startswith("..") and Path(file).is_absolute() else file


def place(event: Event) -> str:
    """`file:line` as a person would type it, with the process's rank in a distributed job."""
    where = f"{shown_path(event.file)}:{event.line}" if event.file is not None else "(no Python line)"
    return where if event.rank is None else f"{where} (rank {event.rank})"


def span(event: Event) -> str:
    """The steps from the first occurrence to the last."""
    return f"{event.step}" if event.last_step == event.step else f"{event.step}-{event.last_step}"


def input_range(event: Event) -> str | None:
    """What the finite inputs of the first occurrence were: `float32[64, 12] in [-1.5, 88.7]`; None where no tensor was seen."""
    if event.minimum is None or event.maximum is None or event.dtype is None:
        return None
    return f"{event.dtype}{list(event.shape or ())} in [{event.minimum:.4g}, {event.maximum:.4g}]"


def _rollback_line(rollback: Mapping[str, Any] | None, times: int) -> str:
    if not rollback:
        return ""
    return f"; rolled back {times} times ({rollback['copies']} copies of the state, {rollback['mib']:.3g} MiB, {rollback['seconds']:.3g} s)"


class _Layout:
    """Lines for a terminal of a given width; without one every entry is one line, as a pipe wants it."""

    def __init__(self, width: int | None) -> None:
        self.width = width
        self.lines: list[str] = []

    def text(self, text: str, indent: int = 0) -> None:
        """Prose, wrapped between words."""
        if self.width is None:
            self.lines.append(" " * indent + text)
            return
        room = max(self.width - indent, _NARROWEST_TEXT)
        self.lines += [" " * indent + part for part in _wrapped(text, room)]

    def whole(self, text: str, indent: int = 0) -> None:
        """What has to stay in one piece, whatever the width: a place, a line of source."""
        self.lines.append(" " * indent + text)


def _wrapped(text: str, room: int) -> list[str]:
    """Lines of at most `room` terminal cells, broken at spaces only: a word that is longer stands alone."""
    if text.isascii():
        return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    lines, line = [], ""
    for word in text.split():
        if line and cell_len(line) + 1 + cell_len(word) > room:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _padded(text: str, width: int) -> str:
    return text + " " * max(0, width - cell_len(text))


def summary_table(
    events: Sequence[Event],
    facts: Mapping[str, Any],
    first_cause: Event | None = None,
    sources: Mapping[str, Lines] | None = None,
    width: int | None = None,
) -> str:
    """What was done at which line (code, action, count, steps), with the source line and message beneath; then the first cause and the counts.

    Args:
        sources: source lines kept with a report, by file and number; the files themselves are read without them.
        width: columns of the terminal, for prose to be wrapped and cells to be stacked where they do not fit side by side. Places
            (`file.py:line`) and source lines are never broken. None, for a pipe or a file, breaks nothing.
    """
    out = _Layout(width)
    out.text(f"latent-drift {facts['config']}")
    state = facts.get("state", "finished")
    if state != "finished":
        out.text("this run has not ended, or was killed: what follows is as of its last word" if state == "running" else f"the run {state}", 2)
    quiet = all(e.action == "warned" for e in events)
    if quiet:
        out.text(f"nothing had to be done in {facts['steps']} optimizer steps ({facts['intercepted']} operations were guarded)", 2)
    if events:
        narrow = width is not None and _place_width(events) + _OTHER_CELLS > width
        (_stacked if narrow else _side_by_side)(out, events)
        if first_cause is not None:
            _first_cause(out, first_cause, sources or {}, narrow)
        out.text("remedies", 2)
        for code in dict.fromkeys(e.code for e in events):
            out.text(f"{code}: {FINDINGS[code].remedy}", 4 if narrow else 6)
    for text in unreached(facts):
        out.whole(text, 2)
    out.text(counts(facts), 2)
    return "\n".join(out.lines)


def _place_width(events: Sequence[Event]) -> int:
    return max(cell_len(place(e)) for e in events)


def _side_by_side(out: _Layout, events: Sequence[Event]) -> None:
    width = _place_width(events)
    out.whole(f"{'where':<{width}}  {'code':<5}  {'finding':<20}  {'action':<11}  {'times':>6}  steps", 2)
    for event in events:
        out.whole(f"{_padded(place(event), width)}  {event.code:<5}  {event.name:<20}  {event.action:<11}  {event.count:>6}  {span(event)}", 2)
        _beneath(out, event, 6)


def _stacked(out: _Layout, events: Sequence[Event]) -> None:
    for event in events:
        out.whole(place(event))
        out.text(f"{event.code} {event.name}", 2)
        steps = f"{'step' if event.last_step == event.step else 'steps'} {span(event)}"
        out.text(f"{event.action} {event.count} {'time' if event.count == 1 else 'times'}, {steps}", 2)
        _beneath(out, event, 4)


def _beneath(out: _Layout, event: Event, indent: int) -> None:
    if event.source:
        out.whole(event.source, indent)
    out.text(event.message + (f" [{event.module}]" if event.module else ""), indent)
    seen = input_range(event)
    if seen is not None:
        out.text(f"input {seen}", indent)


def _first_cause(out: _Layout, cause: Event, sources: Mapping[str, Lines], narrow: bool) -> None:
    summary = f"{cause.code} {cause.name}: {FINDINGS[cause.code].summary}"
    if narrow:
        out.text("first cause", 2)
        out.whole(place(cause))
        out.text(summary, 4)
    else:
        out.text(f"first cause: {place(cause)}  {summary}", 2)
    for number, text in excerpt(cause, sources).items():
        out.whole(f"{'>' if number == cause.line else ' '} {number:>5} | {text}", 2 if narrow else 6)
    for text in explanation(cause):
        out.text(text, 4 if narrow else 6)


def explanation(cause: Event) -> Iterator[str]:
    """What is known of a first cause: operation and step, what went in, the parameters behind it, how the steps before led there, what to do."""
    module = f" [{cause.module}]" if cause.module else ""
    yield f"{cause.op}, step {cause.step}: {cause.message}{module}"
    seen = input_range(cause)
    if seen is not None:
        yield f"input {seen}"
    if cause.parameters:
        yield f"computed from {', '.join(cause.parameters)}"
    if cause.trend is not None and cause.trend not in cause.message:
        yield f"before it, {cause.trend}"
    yield f"remedy: {FINDINGS[cause.code].remedy}"


def unreached(facts: Mapping[str, Any]) -> list[str]:
    """What was not reached in each function that ran as compiled code, with its `file:line name`."""
    return [
        f"{said}: {shown_path(function['file'])}:{function['line']} {function['name']}"
        for key, said in (("not_watched", UNSEEN), ("not_in_float32", NOT_WIDENED))
        for function in facts.get(key, ())
    ]


def counts(facts: Mapping[str, Any]) -> str:
    """The last line: steps, what was skipped and clipped, interventions, and what was not kept."""
    acted, of_all = facts["interventions"], facts.get("steps_of_all_optimizers", 0)
    together = f" ({of_all} of all optimizers)" if of_all > facts["steps"] else ""
    return (
        f"{facts['steps']} optimizer steps{together}: {facts['skipped']} skipped, {facts['clipped']} clipped; "
        f"{acted} intervention{'' if acted == 1 else 's'}"
        + (f"; {facts['watched_steps']} steps were watched operation by operation" if facts.get("watched_steps") else "")
        + _rollback_line(facts.get("rollback"), facts.get("rolled_back", 0))
        + (f"; {facts['events_dropped']} further events were not kept" if facts["events_dropped"] else "")
    )
