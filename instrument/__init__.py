"""instrument: makes an unmodified PyTorch training script numerically safe while it runs, and leaves no trace.

import instrument
with instrument.stable() as run:
    legacy_main()
print(run.summary())
"""

from instrument.events import Event
from instrument.run import Run
from instrument.session import install, stable, uninstall

__all__ = ["Event", "Run", "install", "stable", "uninstall"]
