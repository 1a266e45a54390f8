"""Writing config files so that none is ever seen half written."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from latent_drift.errors import ConfigError


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never half of it; a failure leaves nothing behind.

    A file that was there keeps its permissions, a new one has those of the umask.

    Raises:
        ConfigError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
            if path.exists():
                os.chmod(temporary, path.stat().st_mode & 0o777)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error
