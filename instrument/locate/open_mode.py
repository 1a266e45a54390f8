"""A TorchFunctionMode that is opened here and closed somewhere else, when its work is done.

Modes are a stack of the thread that opens them: only that thread can take one off, and only while it is the topmost and is handling no call.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode

M = TypeVar("M", bound=TorchFunctionMode)


class OpenMode(Generic[M]):
    """A mode that is on in the thread that made this object."""

    __slots__ = ("_thread", "mode")

    def __init__(self, mode: M) -> None:
        self.mode = mode
        self._thread = threading.current_thread()
        mode.__enter__()  # type: ignore[no-untyped-call]

    @staticmethod
    def may_open() -> bool:
        """False while this thread has another mode on: one that somebody closes later must stay on top."""
        return torch._C._len_torch_function_stack() == 0

    def leave(self) -> bool:
        """Take the mode off if that can be done here and now; returns whether it is off. A thread that has ended took its stack with it."""
        if not self._thread.is_alive():
            return True
        if self._thread is not threading.current_thread() or _get_current_function_mode() is not self.mode:
            return False
        self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return True
