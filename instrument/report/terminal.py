"""The table at the end of a run. `file.py:line` is never wrapped or cut, however narrow the terminal or the pipe."""

from __future__ import annotations

import linecache
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instrument.events import Event
from patches.findings import FINDINGS


def shown_path(file: str) -> str:
    """The path as a person would type it: relative to the working directory where that is shorter."""
    try:
        relative = os.path.relpath(file)
    except ValueError:  # another drive
        return file
    return relative if not relative.startswith("..") and Path(file).is_absolute() else file


def _place(event: Event) -> str:
    return f"{shown_path(event.file)}:{event.line}" if event.file is not None else "(no Python line)"


def source_around(event: Event, reach: int = 2) -> list[str]:
    """The event's source line with the lines around it, as far as the file can be read."""
    if event.file is None or event.line is None:
        return []
    found = []
    for number in range(max(1, event.line - reach), event.line + reach + 1):
        text = linecache.getline(event.file, number).rstrip("\n")
        if text or number == event.line:
            found.append(f"      {'>' if number == event.line else ' '} {number:>5} | {text or event.source or ''}")
    return found


def summary_table(events: Sequence[Event], facts: Mapping[str, Any], first_cause: Event | None = None) -> str:
    """One line an event (code, action, count, steps, place), with the source line and message beneath; then the first cause and the counts."""
    lines = [f"latent-drift {facts['config']}"]
    if not events:
        lines.append(f"  nothing had to be done in {facts['steps']} optimizer steps ({facts['intercepted']} operations were guarded)")
    else:
        width = max(len(_place(e)) for e in events)
        lines.append(f"  {'where':<{width}}  {'code':<5}  {'finding':<20}  {'action':<11}  {'times':>6}  steps")
        for event in events:
            span = f"{event.step}" if event.last_step == event.step else f"{event.step}-{event.last_step}"
            lines.append(f"  {_place(event):<{width}}  {event.code:<5}  {event.name:<20}  {event.action:<11}  {event.count:>6}  {span}")
            if event.source:
                lines.append(f"      {event.source}")
            lines.append(f"      {event.message}" + (f" [{event.module}]" if event.module else ""))
            if event.minimum is not None and event.maximum is not None and event.dtype is not None:
                lines.append(f"      input {event.dtype}{list(event.shape or ())} in [{event.minimum:.4g}, {event.maximum:.4g}]")
        if first_cause is not None:
            lines.append(f"  first cause: {_place(first_cause)}  {first_cause.code} {first_cause.name}: {FINDINGS[first_cause.code].summary}")
            lines += source_around(first_cause)
        lines.append("  remedies")
        for code in dict.fromkeys(e.code for e in events):
            lines.append(f"      {code}: {FINDINGS[code].remedy}")
    lines.append(
        f"  {facts['steps']} optimizer steps: {facts['skipped']} skipped, {facts['clipped']} clipped; {facts['interventions']} interventions"
        + (f"; {facts['watched_steps']} steps were watched operation by operation" if facts.get("watched_steps") else "")
        + (f"; {facts['events_dropped']} further events were not kept" if facts["events_dropped"] else "")
    )
    return "\n".join(lines)
