"""The folder that `run.save(folder)` and `--report` write: one process's files, or a subfolder `rank-N` for each process of a distributed job.

A folder with subfolders `rank-0`, `rank-1`, ... is one job. Each process writes its own and then joins what is there into the folder's events.jsonl,
summary.json and report.html, so the last one to end leaves the whole, and a process that died leaves what it had written until then.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instrument.events import Event
from instrument.report import fixes, page, recording
from instrument.report.rank import process_rank, world_size
from instrument.report.recording import Recording
from instrument.report.terminal import summary_table

if TYPE_CHECKING:
    from instrument.run import Run

PAGE = "report.html"
_RANK_FOLDER = re.compile(r"rank-(\d+)")


@dataclass(frozen=True, slots=True)
class Report:
    """What people are shown: the recordings of all processes, what they say together, and the ready changes to the source."""

    recordings: tuple[Recording, ...]
    facts: Mapping[str, Any]
    events: tuple[Event, ...]
    first_cause: Event | None

    def table(self, width: int | None = None) -> str:
        """The table for a terminal of this width, or for a pipe."""
        sources = {file: lines for one in self.recordings for file, lines in one.sources.items()}
        return summary_table(self.events, self.facts, self.first_cause, sources, width)


def save(run: Run, folder: Path) -> None:
    """Write a run's files and the page into `folder`, made if missing; in a distributed job into its `rank-N`, and the folder's joint files.

    Raises:
        OSError: the folder cannot be made or written.
    """
    rank = run.rank
    save_recording(run, folder)
    if rank is None:
        _write_page(read(folder), folder)
        return
    with _alone_in(folder):
        _remove_ranks(folder, world_size() or rank + 1)
        rebuild(folder)


def save_recording(run: Run, folder: Path) -> None:
    """Write only what this process knows, without the page: cheap enough to be done while the run goes on."""
    rank = run.rank
    if rank is None:
        _remove_ranks(folder, 0)
    recording.write(recording.of_run(run, rank), folder if rank is None else folder / f"rank-{rank}")


def save_rank(run: Run, folder: Path) -> None:
    """As `save`, for a rank that does not know how many there are: what others left stays.

    Raises:
        OSError: the folder cannot be made or written.
    """
    save_recording(run, folder)
    with _alone_in(folder):
        rebuild(folder)


def begin(folder: Path) -> None:
    """Clear what an earlier run of this process left there: if this one dies at once, nothing of the other is shown in its place."""
    rank = process_rank()
    if rank is None:
        _remove_ranks(folder, 0)
    own = folder if rank is None else folder / f"rank-{rank}"
    own.mkdir(parents=True, exist_ok=True)
    for name in (recording.EVENTS, recording.SUMMARY, recording.TIMELINE, recording.LAYERS, recording.SOURCES, fixes.FIXES, PAGE):
        (own / name).unlink(missing_ok=True)


def read(folder: Path) -> Report:
    """The report in a folder, of one process or of all that left a `rank-N` there.

    Raises:
        UsageError: there is no report, or a file of it is damaged.
    """
    recordings = []
    missing = []
    for rank, part in sorted(_rank_folders(folder).items()):
        if any(part.iterdir()):
            recordings.append(recording.read(part, rank))
        else:  # the process ended before it could write
            missing.append(rank)
    if recordings:
        return _joined(recordings, missing)
    one = recording.read(folder)
    return Report((one,), one.facts, one.events, one.first_cause)


def rebuild(folder: Path) -> Report:
    """Write report.html, and in a distributed job the joint files, from what the folder holds.

    Raises:
        UsageError: there is no report, or a file of it is damaged.
        OSError: the folder cannot be written.
    """
    report = read(folder)
    if report.recordings[0].rank is not None:
        recording.write_joint(report.events, report.facts, folder)
    _write_page(report, folder)
    return report


def _write_page(report: Report, folder: Path) -> None:
    found = fixes.find(folder, report.events)
    recording.replace_text(folder / PAGE, page.render(report, found))


def _rank_folders(folder: Path) -> dict[int, Path]:
    """The subfolders that our processes made: those with a report in them, and those still empty."""
    if not folder.is_dir():
        return {}
    named = ((_RANK_FOLDER.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in named if match is not None and (_has_report(path) or not any(path.iterdir()))}


def _has_report(folder: Path) -> bool:
    return (folder / recording.SUMMARY).exists() or (folder / recording.EVENTS).exists()


def _remove_ranks(folder: Path, size: int) -> None:
    """Remove what a larger job left: the subfolders of ranks that this job does not have."""
    for rank, path in _rank_folders(folder).items():
        if rank >= size and _has_report(path):
            shutil.rmtree(path, ignore_errors=True)


_JOINING: set[Path] = set()
"""The folders whose lock this process holds."""


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process joins at a time. Where files cannot be locked the last writer wins, which is complete unless two end in the same moment."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    # The file stays: who removed it would let the next process lock another one beside a process that still waits for this.
    if folder in _JOINING:  # a signal's handler writes while the very save that it interrupted holds the lock
        yield
        return
    with (folder / ".joining").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        _JOINING.add(folder)
        try:
            yield
        finally:
            _JOINING.discard(folder)


def _joined(recordings: Sequence[Recording], missing: Sequence[int]) -> Report:
    """Processes step together, so counts of steps are the largest of any; interventions and events add up."""
    first = recordings[0]
    events = tuple(sorted((e for one in recordings for e in one.events), key=lambda e: (e.step, e.rank or 0)))
    # What one process finds in its gradients came from another: the cause is the earliest that any names.
    causes = [(one.first_cause_step, one.rank or 0, one.first_cause) for one in recordings if one.first_cause is not None]
    cause = min(causes, key=lambda item: item[:2])[2] if causes else None
    states = {str(one.facts.get("state", "finished")) for one in recordings}
    facts = {
        **first.facts,
        **{key: max(one.facts[key] for one in recordings) for key in ("steps", "skipped", "clipped")},
        **{key: sum(one.facts.get(key, 0) for one in recordings) for key in ("interventions", "events", "events_dropped")},
        **{
            key: list({tuple(entry.values()): entry for one in recordings for entry in one.facts.get(key, ())}.values())
            for key in ("not_watched", "not_in_float32")
        },
        "state": next(iter(states))
        if len(states) == 1
        else "; ".join(f"rank {one.rank}: {one.facts.get('state', 'finished')}" for one in recordings),
        "first_cause": None if cause is None else cause.where,
        "first_cause_code": None if cause is None else cause.code,
        "ranks": [one.rank for one in recordings],
        "silent_ranks": list(missing),
    }
    facts.pop("rank", None)
    return Report(tuple(recordings), facts, events, cause)
