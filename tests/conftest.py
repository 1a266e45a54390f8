"""What every test process has: one thread, and little to look through but what its tests make."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

# Set before anything imports torch, and inherited by the processes that tests start: the suite's workers use the cores already, and OpenMP's
# waiting threads would take them from each other (the latent ODE's tests: 10 s of CPU became 146).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# An error of ours while a cause is looked for is logged in a user's script; here it is a failure.
os.environ["LATENT_DRIFT_RAISES_ITS_OWN"] = "1"


@pytest.fixture(scope="module", autouse=True)
def _what_was_there_before_is_not_walked_again() -> Iterator[None]:
    """Take the million objects that imports leave out of the walks over all objects, the collector's and our own, while a module's tests run."""
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()
