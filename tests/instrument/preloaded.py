"""Runs command lines one after the other, each in a fork of one process that has imported torch and instrument: three seconds once, not for each.

    python -m tests.instrument.preloaded

reads a JSON object a line, `{"folder": ..., "words": [script, *arguments], "stdout": path, "stderr": path}`, and answers with the exit status. It is
for command lines whose outcome does not depend on what was imported when; the others start a process of their own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOADED = ("torch", "torch._dynamo", "instrument.commands", "instrument.runner", "instrument.session")


class Preloaded:
    """The process, to ask for one command line after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """What the script `words[0]` does with the other words, in `folder`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        files = {name: str(folder / f".{name}") for name in ("stdout", "stderr")}
        self._process.stdin.write(json.dumps({"folder": str(folder), "words": words} | files) + "\n")
        self._process.stdin.flush()
        status = self._process.stdout.readline()
        assert status, "the process itself has ended; what it said is on standard error"
        return subprocess.CompletedProcess(words, int(status), *(Path(path).read_text(encoding="utf-8") for path in files.values()))


@contextmanager
def preloaded(environment: dict[str, str]) -> Iterator[Preloaded]:
    """Start the process; it ends with the block."""
    command = [sys.executable, "-m", __name__]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        yield Preloaded(process)
        assert process.stdin is not None
        process.stdin.close()


def _become(asked: dict[str, Any]) -> None:
    os.chdir(asked["folder"])
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = asked["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")  # what it ends with is what this process ends with


def main() -> None:
    """Answer until there are no more lines."""
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # no child looks through, or copies by looking, what is there already
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
