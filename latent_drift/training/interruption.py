"""Being asked to stop: the step under way is finished, a checkpoint written, and then the process leaves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether Ctrl-C was pressed, or the process told to terminate, since the block was entered.

    Attributes:
        signal: of the first request, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def request(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal. A second Ctrl-C does not wait for the step; under torchrun, which passes the terminal's Ctrl-C on once more, it does.

        Raises:
            KeyboardInterrupt: the second Ctrl-C outside torchrun.
        """
        if self.signal is not None and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)

    @property
    def requested(self) -> bool:
        """Whether to stop after this step."""
        return self.signal is not None


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Ctrl-C (SIGINT), SIGTERM and a terminal that closes (SIGHUP) only ask to stop inside this block; the handlers from before are back afterwards.

    What was ignored stays ignored, as nohup and background jobs want it. Outside the main thread, where Python allows no handlers,
    nothing is changed.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, interruption.request) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
