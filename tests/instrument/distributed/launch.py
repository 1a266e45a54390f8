"""Starts a script in several processes as torchrun would, waits a limited time, and tells how each ended."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """How one rank ended; `status` None is a process that had to be killed because time was up: a hang."""

    status: int | None
    stdout: str
    stderr: str


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank=None, world=2, port=None):
    mine = {**os.environ, "PYTHONWARNINGS": "error::UserWarning:instrument"}
    mine.pop("LATENT_DRIFT_CONFIG", None)
    if rank is not None:
        mine |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return mine


def launch(command, *, world=2, seconds=120, cwd=None):
    """Run `command` (after the interpreter) once a rank. A rank that fails does not end the others: only they can show that they do not hang."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment(rank, world, port),
        )
        for rank in range(world)
    ]
    deadline = time.monotonic() + seconds
    ended = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            ended.append(Ended(process.returncode, out, err))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            ended.append(Ended(None, out, err))
    return ended
