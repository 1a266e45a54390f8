"""instrument: makes an unmodified PyTorch training script numerically safe while it runs, and leaves no trace.

import instrument
with instrument.stable() as run:
    legacy_main()
print(run.summary())

Names are loaded when they are first used: the pytest plugin is imported by every pytest in the environment, and torch shall not be. Where torch is
there already they are loaded at once, so that nothing is imported in the middle of a script (torch's own modules gain names by being imported).
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instrument.events import Event
    from instrument.injection import Injection, inject
    from instrument.report.folder import Report
    from instrument.run import Run
    from instrument.session import install, stable, uninstall

_HOMES = {
    "Event": "instrument.events",
    "Injection": "instrument.injection",
    "Report": "instrument.report.folder",
    "Run": "instrument.run",
    "inject": "instrument.injection",
    "install": "instrument.session",
    "stable": "instrument.session",
    "uninstall": "instrument.session",
}

__all__ = ["Event", "Injection", "Report", "Run", "inject", "install", "stable", "uninstall"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if "torch" in sys.modules:
    import_module("instrument.session")
