"""The exceptions of `patches`.

PatchesError
├── PatchesUsageError    an option, a setting or a path is wrong; the command exits 2
└── ReportError          the events of a run cannot be read; the command exits 2
"""

from __future__ import annotations


class PatchesError(Exception):
    """Anything that `patches` raises for its user."""


class PatchesUsageError(PatchesError):
    """An option, a setting or a path is wrong: what was given, what is expected."""


class ReportError(PatchesError):
    """The folder given to --from-report holds no readable events.jsonl."""
