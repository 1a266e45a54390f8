"""report.html: one file that needs nothing else. The template, its style and its script lie beside this module."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from instrument.events import CONSEQUENCES, Event
from instrument.report import heatmap, timeline
from instrument.report.fixes import FileDiff, Fixes, Hunk
from instrument.report.sources import excerpt
from instrument.report.terminal import input_range, place, span, unreached
from patches.findings import FINDINGS, Finding

if TYPE_CHECKING:
    import jinja2

    from instrument.report.folder import Report

MOST_FINDINGS = 100
"""Findings shown in full; the rest is a list."""

MOST_MAPS = 4
"""Processes whose gradient norms by layer are shown."""

_Label = TypeVar("_Label")

_HERE = Path(__file__).resolve().parent


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


_STYLE, _SCRIPT = _text("page.css"), _text("page.js")
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode('utf-8')).digest()).decode('ascii')}'"
)


@dataclass(frozen=True, slots=True)
class Card:
    """A finding as the page shows it."""

    anchor: str
    event: Event
    finding: Finding
    place: str
    span: str
    range: str | None
    source: tuple[tuple[int, str], ...]
    is_cause: bool
    is_consequence: bool
    diff: FileDiff | None
    hunks: tuple[Hunk, ...]


@cache
def template() -> jinja2.Template:
    """The page's template, compiled once. Loading jinja2 takes longer than all else here, so whoever writes no page does not; the runner asks for
    it before the script starts, whose own folder stands first on sys.path from then on."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["dedented"] = _dedented
    return environment.from_string(_text("page.html.j2"))


def render(report: Report, fixes: Fixes) -> str:
    """The page of a report, with the changes that mend its findings. Every text of the script's is escaped; no script but ours can run in it."""
    cards = _cards(report, fixes)
    recordings = report.recordings
    plot = timeline.build(recordings, report.events)
    with_layers = timeline.telling([one for one in recordings if one.layers.steps], MOST_MAPS)
    maps = [(one.rank, found) for one in with_layers if (found := heatmap.build(one.layers)) is not None]
    maps.sort(key=lambda item: item[1].bad == 0)  # where something went bad comes first, and stands open
    data = {
        "records": plot.data if plot else [],
        "first": plot.first if plot else 0,
        "last": plot.last if plot else 0,
        "marks": [[mark.step, mark.title] for _, marks in plot.lanes for mark in marks] if plot else [],
        "maps": [{"rows": found.rows, "steps": found.steps, "cells": found.cells} for _, found in maps],
    }
    return template().render(
        policy=_POLICY,
        style=_STYLE,
        script=_SCRIPT,
        data=_json(data),
        facts=report.facts,
        headline=_headline(report.facts, report.events),
        state=_state(report.facts),
        figures=_figures(report.facts, report.events),
        cause=next((card for card in cards if card.is_cause), None),
        cards=cards,
        others=[card for card in cards if not card.is_cause][:MOST_FINDINGS],
        rest=[card for card in cards if not card.is_cause][MOST_FINDINGS:],
        script_name=Path(str(report.facts.get("script") or "")).name,
        plot=plot,
        maps=maps,
        changes=fixes.files,
        change_notes=fixes.notes,
        watched=_watched(report),
        notes=[note for one in recordings for note in one.notes],
        drawn=sorted({rank for *_, rank in plot.data if rank is not None}) if plot else [],
        ranks=[one.rank for one in recordings if one.rank is not None],
        size=timeline.SIZE,
        identity=_identity(report.facts),
    )


def _json(document: object) -> str:
    """JSON that can stand in a script element: no text can end it."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cards(report: Report, fixes: Fixes) -> list[Card]:
    sources = {file: lines for one in report.recordings for file, lines in one.sources.items()}
    cards = []
    for number, event in enumerate(report.events, start=1):
        diff = fixes.mends(event)
        cards.append(
            Card(
                anchor=f"finding-{number}",
                event=event,
                finding=FINDINGS[event.code],
                place=place(event),
                span=f"step {span(event)}" if event.last_step == event.step else f"steps {span(event).replace('-', ' to ')}",
                range=input_range(event),
                source=_dedented(excerpt(event, sources).items()),
                is_cause=event is report.first_cause,
                is_consequence=event.code in CONSEQUENCES,
                diff=diff,
                hunks=tuple(diff.at(event.line)) if diff is not None else (),
            )
        )
    return cards


def _dedented(lines: Iterable[tuple[_Label, str]]) -> tuple[tuple[_Label, str], ...]:
    """Source lines without the indentation that all of them share: on a phone every column counts."""
    found = [(label, text.expandtabs(4)) for label, text in lines]
    margin = min((len(text) - len(text.lstrip()) for _, text in found if text.strip()), default=0)
    return tuple((label, text[margin:]) for label, text in found)


def _headline(facts: Mapping[str, Any], events: Sequence[Event]) -> str:
    steps = _plural(facts["steps"], "step")
    if not events:
        return f"Nothing had to be done in {steps}."
    lines = len({(event.file, event.line) for event in events})
    if facts["interventions"]:
        return f"{_plural(facts['interventions'], 'intervention')} at {_plural(lines, 'line')} in {steps}."
    return f"{_plural(len(events), 'finding')} at {_plural(lines, 'line')} in {steps}; nothing was altered."


def _state(facts: Mapping[str, Any]) -> str | None:
    state = str(facts.get("state", "finished"))
    if state == "finished":
        return None
    return "This run has not ended, or was killed: this is as of its last word." if state == "running" else f"The run {state}."


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _figures(facts: Mapping[str, Any], events: Sequence[Event]) -> list[tuple[str, str]]:
    found = [("steps", f"{facts['steps']:,}"), ("skipped", f"{facts['skipped']:,}"), ("clipped", f"{facts['clipped']:,}")]
    found += [("interventions", f"{facts['interventions']:,}"), ("findings", f"{len(events):,}")]
    if facts.get("seconds") is not None:
        found.append(("time", _duration(float(facts["seconds"]))))
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min"


def _watched(report: Report) -> tuple[list[str], list[str]]:
    """What was looked at, and what was not."""
    facts = report.facts
    seen = (
        [f"{facts['intercepted']} operations were guarded, and every backward and optimizer step that ran in Python."] if facts["intercepted"] else []
    )
    if facts.get("watched_steps"):
        seen.append(f"{_plural(facts['watched_steps'], 'step')} were watched operation by operation, to find what no guard had seen.")
    records = sum(len(one.timeline) for one in report.recordings)
    if records:
        seen.append(
            f"The timeline holds {records:,} of {facts['steps'] * len(report.recordings):,} steps; those at which something was done are kept first."
        )
    columns = max(len(one.layers.steps) for one in report.recordings)
    if columns:
        seen.append(f"Gradient norms by layer were taken at {_plural(columns, 'step')}; a column says nothing about the steps beside it.")
    unseen = []
    if facts.get("profile") == "observe":
        unseen.append("Profile observe alters nothing: what is listed went on as it was.")
    if facts["events_dropped"]:
        unseen.append(f"{_plural(facts['events_dropped'], 'further event')} were counted but not kept (anomaly.max_events).")
    if facts.get("silent_ranks"):
        unseen.append(f"Nothing was left by rank {', '.join(map(str, facts['silent_ranks']))}: the process ended before it could write.")
    if facts.get("foreign_patches"):
        unseen.append(f"Somebody else replaced {', '.join(facts['foreign_patches'])} while the run went on.")
    unseen += [f"{text[0].upper()}{text[1:]}." for text in unreached(facts)]
    unseen += [
        "Compiled code (torch.compile, torch.export) keeps the bounds of the exponentials; its other operations were not looked at.",
        "Calls made inside C++, child processes without a guard of their own, and plain local variables that hold a torch function.",
        "On an accelerator no value is read per operation: there, what happened is read once a step.",
    ]
    return seen, unseen


def _identity(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = (("config", "config"), ("profile", "profile"), ("script", "script"), ("started", "started"), ("torch", "torch"), ("python", "python"))
    found = [(label, str(facts[key])) for key, label in names if facts.get(key)]
    return found + [(f"override {key}", str(value)) for key, value in dict(facts.get("overrides", {})).items()]
