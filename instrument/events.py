"""Typed events, the bounded log that counts them, and their JSON lines."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from instrument import json_lines
from latent_drift.errors import UsageError

Action = Literal["bounded", "neutralised", "repaired", "skipped", "zeroed", "clipped", "rolled-back", "observed", "warned"]
"""What was done: `observed` and `warned` altered nothing."""

REPAIRING: frozenset[str] = frozenset({"bounded", "neutralised", "repaired", "skipped", "zeroed", "clipped", "rolled-back"})
"""The actions that altered a number."""

CONSEQUENCES = frozenset({"NS506", "NS507", "NS508", "NS509", "NS808"})
"""Findings that say that something went wrong before them."""

STEPS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Site:
    """A line of the user's own source. `line` counts from 1; `source` is its text, stripped, where it can be read."""

    file: str
    line: int
    function: str
    source: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that went wrong at one place, and what was done about it, with how often.

    Occurrences with the same code, action, operation and line are one event: `count` says how many there were, `step` and
    `last_step` the optimizer steps of the first and the latest (0 is before the first step), `steps` the first few of them.
    Ranges describe the finite inputs of the first occurrence. `rank` is the process of a distributed job, None in a single one.
    """

    code: str
    name: str
    action: Action
    op: str
    file: str | None
    line: int | None
    function: str | None
    source: str | None
    message: str
    step: int
    count: int = 1
    last_step: int = 0
    steps: tuple[int, ...] = ()
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    nan: int = 0
    inf: int = 0
    module: str | None = None
    parameter: str | None = None
    parameters: tuple[str, ...] = ()
    """The nearest parameters that the operation computes from."""
    trend: str | None = None
    """What the history of the run says about how it came to this, with numbers."""
    config_version: str = ""
    config_sha256: str = ""
    config_digest: str = ""
    profile: str = ""
    rank: int | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two occurrences one event: code, action, operation, place, parameter."""
        return (self.code, self.action, self.op, self.file, self.line, self.parameter)

    @property
    def repaired(self) -> bool:
        """True if a number was altered."""
        return self.action in REPAIRING

    @property
    def place(self) -> tuple[str | None, int | None]:
        """File and line."""
        return self.file, self.line

    @property
    def where(self) -> str:
        """`file:line`, or what can be said where no line of the user's is known."""
        return f"{self.file}:{self.line}" if self.file is not None else "(no Python line)"

    def as_json(self) -> str:
        """One line of events.jsonl. Non-finite numbers do not occur in it."""
        return json.dumps(asdict(self), allow_nan=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Event:
        """The event of one line of events.jsonl; keys of later versions are ignored."""
        document: dict[str, Any] = json.loads(line)
        known = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
        for name in ("shape", "steps", "parameters"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        return cls(**known)


class EventLog:
    """Events in the order of their first occurrence: at most `limit` distinct ones, the rest only counted in `dropped`."""

    def __init__(self, limit: int = 10_000) -> None:
        if limit < 1:
            raise UsageError(f"an event log needs room for at least one event; got limit={limit}")
        self._limit = limit
        self._events: dict[tuple[object, ...], Event] = {}
        # A signal's handler that saves the report may interrupt the very thread that records.
        self._lock = threading.RLock()
        self.dropped = 0
        self.changed: dict[tuple[object, ...], Event] | None = None
        """Where the events that changed are kept for those who follow the run; None while nobody does."""
        self.forward: Callable[[Event], None] | None = None
        """Called with each occurrence, in a process that was forked."""

    def record(self, event: Event) -> Event:
        """Add an occurrence; returns the event it is now counted in."""
        key = event.key
        if self.forward is not None:
            self.forward(event)
        with self._lock:
            known = self._events.get(key)
            if known is None:
                if len(self._events) >= self._limit:
                    self.dropped += 1
                    return event
                merged = replace(event, last_step=event.step, steps=(event.step,))
            else:
                new_step = known.last_step != event.step and len(known.steps) < STEPS_KEPT
                merged = replace(
                    known, count=known.count + event.count, last_step=event.step, steps=(*known.steps, event.step) if new_step else known.steps
                )
            self._events[key] = merged
            if self.changed is not None:
                self.changed[key] = merged
            return merged

    def take_changed(self) -> list[Event]:
        """The events that changed since this was asked last, for those who follow the run."""
        with self._lock:
            changed, self.changed = list((self.changed or {}).values()), {}
        return changed

    def known(self, key: tuple[object, ...]) -> bool:
        """True if an event with this (code, action, op, file, line, parameter) is there."""
        return key in self._events

    def __iter__(self) -> Iterator[Event]:
        with self._lock:
            return iter(list(self._events.values()))

    def __len__(self) -> int:
        return len(self._events)


def write_jsonl(events: Iterable[Event], path: Path) -> None:
    """Write one JSON object a line, replacing the file at once so that no half-written one is left."""
    json_lines.write(events, path)


def read_jsonl(path: Path) -> list[Event]:
    """The events of a file that `write_jsonl` wrote.

    Raises:
        UsageError: the file is missing, or a line of it is no event; the message names the line.
    """
    return json_lines.read(path, Event.from_json, "events", "an event")
