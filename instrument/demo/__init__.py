"""The bundled demonstration: one legacy-style script that knows nothing of us, run plain and then guarded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from instrument.runner import run_guarded
from instrument.session import stable

SCRIPT = Path(__file__).with_name("legacy_vae.py")


def show(steps: int, say: Callable[[str], None]) -> int:
    """Run the script plain in a process of its own, then guarded in this one, then show the table.

    Returns:
        The exit status: 0 if the guarded run ended normally.
    """
    arguments = ["--steps", str(steps)]
    say(f"{SCRIPT.name}: a small sequence VAE in the style of research code. First as it is:\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=False)
    say("\nNow the very same file inside instrument.stable():\n")
    outcome = run_guarded(str(SCRIPT), arguments, stable())
    say("\n" + outcome.run.summary())
    return outcome.status
