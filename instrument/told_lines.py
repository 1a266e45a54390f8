"""Lines of text that forked processes tell the one that they came from: a temporary file, made by the first line."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from pathlib import Path


class ToldLines:
    """One such file. It is there while a forked process has told something and `forget` was not called."""

    def __init__(self, about: str) -> None:
        self._process = os.getpid()
        self._file = Path(tempfile.gettempdir()) / f"latent-drift-{about}-{uuid.uuid4().hex}.jsonl"

    @property
    def is_forked(self) -> bool:
        """Whether this is another process than the one that made it."""
        return os.getpid() != self._process

    def tell(self, line: str) -> None:
        """Append a line. A file that cannot be written is no reason for the script to end."""
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[str]:
        """What was told so far. The last line may be cut short: its process was killed while it wrote."""
        try:
            return self._file.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []

    def forget(self) -> None:
        """Leave no file behind, in the process that made it."""
        if not self.is_forked:
            self._file.unlink(missing_ok=True)
