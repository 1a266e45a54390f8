"""patches: a large tree, one long file, and the time to answer `list`, each as a process of its own.

The tree is torch's own package, the largest PyTorch source that is always at hand: 2,000 of its files, the
work given to as many workers as the process may use cores. Wall seconds, so they need a quiet machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.benchmarks.harness import Row, quartiles

ROOT = Path(__file__).resolve().parents[2]
FILES = 2000
LONG = 1800


def _seconds(*arguments: str, cwd: Path) -> float:
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "patches", *arguments], cwd=cwd, env=environment, capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr.decode())
    return time.perf_counter() - start


def _row(name: str, times: list[float], bar: float, note: str) -> Row:
    low, middle, high = quartiles(times) if len(times) > 1 else (times[0],) * 3
    return Row("patches", name, middle, low, high, len(times), bar=bar, unit="s", note=note)


def _tree(folder: Path) -> int:
    """Copies of 2,000 files of torch, evenly spread over the sorted list; returns their lines."""
    found = sorted(Path(torch.__file__).parent.rglob("*.py"))
    lines = 0
    for position in range(min(FILES, len(found))):
        source = found[position * len(found) // min(FILES, len(found))]
        text = source.read_bytes()
        lines += text.count(b"\n")
        (folder / f"m{position:04d}.py").write_bytes(text)
    return lines


def _long_file(folder: Path) -> None:
    """Torch's functional module, cut at a top-level definition near 1,800 lines: dense in what the rules look for."""
    lines = (Path(torch.__file__).parent / "nn" / "functional.py").read_text().splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("def ")]
    (folder / "long.py").write_text("\n".join(lines[: min(n for n in starts if n >= LONG)]) + "\n")


def rows() -> list[Row]:
    """The three bars of the page."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tree").mkdir()
        lines = _tree(folder / "tree")
        _long_file(folder)
        listing = [_seconds("list", cwd=folder) for _ in range(15)]
        start = statistics.median(listing)
        long = [_seconds("check", "long.py", cwd=folder) - start for _ in range(7)]
        tree = [_seconds("check", "tree", cwd=folder) for _ in range(3)]
    return [
        _row("check 2,000 files", tree, 60.0, f"{lines} lines, {cores} cores"),
        _row("check one file of 1,800 lines, after start", long, 1.5, "torch/nn/functional.py"),
        _row("list", listing, 0.4, "no libcst, no torch"),
    ]
