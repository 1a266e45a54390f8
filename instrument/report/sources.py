"""The source lines around events, kept with a report: the files may have moved on, or be on another machine, when it is read."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Mapping

from instrument.events import Event

REACH = 2
"""Lines shown on each side of an event's own."""

Lines = Mapping[int, str]
Sources = dict[str, dict[int, str]]


def lines_around(event: Event, reach: int = REACH) -> dict[int, str]:
    """The event's line with the lines around it, by number. Only the line itself where the file is gone or no longer has that text there."""
    if event.file is None or event.line is None:
        return {}
    there = linecache.getline(event.file, event.line).strip()
    if event.source is not None and there != event.source:
        return {event.line: event.source}
    found = {}
    for number in range(max(1, event.line - reach), event.line + reach + 1):
        text = linecache.getline(event.file, number).rstrip("\r\n")
        if text or number == event.line:
            found[number] = text
    return found


def collect(events: Iterable[Event], reach: int = REACH) -> Sources:
    """The lines around every event, by file and number."""
    sources: Sources = {}
    for event in events:
        if event.file is not None:
            sources.setdefault(event.file, {}).update(lines_around(event, reach))
    return sources


def excerpt(event: Event, sources: Mapping[str, Lines], reach: int = REACH) -> dict[int, str]:
    """The lines around an event from what was kept; failing that from the file as it is now."""
    kept = sources.get(event.file or "", {})
    if event.line is None or event.line not in kept:
        return lines_around(event, reach)
    return {number: kept[number] for number in range(event.line - reach, event.line + reach + 1) if number in kept}
