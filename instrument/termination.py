"""What is still to be done when a process is told to end (SIGTERM: a scheduler's time limit, a launcher whose other process died)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType


def before_termination(acts: Sequence[Callable[[str], object]]) -> None:
    """On SIGTERM call each of `acts` with how the run ended, then die of the signal as the script would have.

    A script that handles the signal itself is left alone. A child process that inherits this one's handler does none of this one's acts; it may
    have acts of its own.
    """
    if not acts or threading.current_thread() is not threading.main_thread() or not _is_free(signal.getsignal(signal.SIGTERM)):
        return
    owner = os.getpid()

    def terminated(number: int, frame: FrameType | None) -> None:
        try:
            if os.getpid() == owner:
                for act in acts:
                    act(f"was ended from outside ({signal.Signals(number).name})")
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    terminated.owner = owner  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, terminated)


def _is_free(handler: object) -> bool:
    """Whether nobody in this process has asked to handle the signal: one of ours that a fork brought along belongs to the parent."""
    return handler is signal.SIG_DFL or getattr(handler, "owner", os.getpid()) != os.getpid()
