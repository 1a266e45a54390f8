"""What one process leaves in its folder, written and read: summary.json, events.jsonl, timeline.jsonl, layers.json, sources.json.

Each file replaces its predecessor at once, so a process that is killed while it writes leaves the one before. A folder that lacks some of them
(the process died early, or another version wrote it) is read as far as it goes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instrument.events import Event, read_jsonl, write_jsonl
from instrument.history import StepRecord, read_timeline, write_timeline
from instrument.layer_norms import LayerTable
from instrument.report.sources import Lines, collect
from latent_drift.errors import UsageError

if TYPE_CHECKING:
    from instrument.run import Run

EVENTS, SUMMARY, TIMELINE, LAYERS, SOURCES = "events.jsonl", "summary.json", "timeline.jsonl", "layers.json", "sources.json"


@dataclass(frozen=True, slots=True)
class Recording:
    """One process's run: counts and identity, events, timeline, gradient norms by layer, source lines; and what could not be read."""

    facts: Mapping[str, Any]
    events: tuple[Event, ...]
    timeline: tuple[StepRecord, ...]
    layers: LayerTable
    sources: Mapping[str, Lines]
    rank: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def first_cause(self) -> Event | None:
        """The event that began it."""
        named = self.facts.get("first_cause")
        return next((e for e in self.events if named is not None and e.where == named and e.code == self.facts.get("first_cause_code", e.code)), None)

    @property
    def first_cause_step(self) -> int:
        """The step at which it began."""
        return self.first_cause.step if self.first_cause is not None else 0


def of_run(run: Run, rank: int | None) -> Recording:
    """The recording of a run as it stands now."""
    events = tuple(replace(event, rank=rank) for event in run.events)
    facts = {**run.facts(), **({"rank": rank} if rank is not None else {})}
    return Recording(facts, events, tuple(run.history), run.layers.table(), collect(events), rank)


def write(recording: Recording, folder: Path) -> None:
    """Write a recording into a folder, made if it is missing.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(recording.events, folder / EVENTS)
    write_timeline(recording.timeline, folder / TIMELINE)
    replace_text(folder / LAYERS, recording.layers.as_json() + "\n")
    replace_text(folder / SOURCES, json.dumps(recording.sources, indent=1) + "\n")
    replace_text(folder / SUMMARY, json.dumps(recording.facts, indent=2, default=str) + "\n")


def write_joint(events: Sequence[Event], facts: Mapping[str, Any], folder: Path) -> None:
    """Write the events and counts of a whole job beside the folders of its processes."""
    write_jsonl(events, folder / EVENTS)
    replace_text(folder / SUMMARY, json.dumps(facts, indent=2, default=str) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads meets the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", errors="replace")
    partial.replace(path)


def read(folder: Path, rank: int | None = None) -> Recording:
    """The recording in a folder, as far as it goes; `notes` says what is missing.

    Raises:
        UsageError: there is neither a summary nor an event there, or a file is damaged; the message names it.
    """
    notes = []
    if not (folder / EVENTS).exists() and not (folder / SUMMARY).exists():
        raise UsageError(f"no report can be read from {folder}: it holds neither {EVENTS} nor {SUMMARY}. Give the folder that --report wrote")
    events = tuple(read_jsonl(folder / EVENTS)) if (folder / EVENTS).exists() else ()
    timeline = tuple(read_timeline(folder / TIMELINE)) if (folder / TIMELINE).exists() else ()
    if not (folder / TIMELINE).exists():
        notes.append(f"{TIMELINE} is missing: no timeline is shown")
    if (folder / SUMMARY).exists():
        facts = read_facts(folder / SUMMARY)
    else:
        facts = _facts_of(events, timeline)
        notes.append(f"{SUMMARY} is missing: the counts are those of the events that were written")
    layers = LayerTable.from_json(_text(folder / LAYERS)) if (folder / LAYERS).exists() else LayerTable()
    sources: dict[str, dict[int, str]] = {}
    if (folder / SOURCES).exists():
        kept = json.loads(_text(folder / SOURCES))
        sources = {file: {int(number): text for number, text in lines.items()} for file, lines in kept.items()}
    rank = rank if rank is not None else facts.get("rank")
    if rank is not None:
        events = tuple(replace(event, rank=rank) for event in events)
    return Recording(facts, events, timeline, layers, sources, rank, tuple(notes))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def read_facts(path: Path) -> dict[str, Any]:
    """The counts and the identity in a summary.json.

    Raises:
        UsageError: the file is missing or is not a summary.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"no summary can be read from {path}: {error}. Give the folder that --report wrote") from error
    missing = {"config", "steps", "skipped", "clipped", "interventions", "intercepted", "events_dropped"} - set(document)
    if missing:
        raise UsageError(f"{path} is not a summary of this tool: it lacks {', '.join(sorted(missing))}")
    return dict(document)


def _facts_of(events: tuple[Event, ...], timeline: tuple[StepRecord, ...]) -> dict[str, Any]:
    """Counts from what is there, for a process that died before it could write its own."""
    last = max([0, *(event.last_step for event in events), *(record.step for record in timeline)])
    config = next((f"{event.config_version} ({event.profile})" for event in events), "unknown config")
    outcomes = [record.outcome for record in timeline]
    return {
        "config": config,
        "state": "running",
        "steps": last,
        "skipped": outcomes.count("skipped"),
        "clipped": outcomes.count("clipped"),
        "interventions": sum(event.count for event in events if event.repaired),
        "events": len(events),
        "events_dropped": 0,
        "intercepted": 0,
    }
