"""Shared by the tests of instrument."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _as_if_nothing_had_been_compiled():
    """What an earlier test of the same process compiled is nothing to the next: surveys and replays stand aside where code was compiled."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo.utils"].counters.clear()


@pytest.fixture(autouse=True)
def _no_mode_is_left_behind():
    """A mode that outlives its block would watch everything that comes after."""
    yield
    if "torch" in sys.modules:
        assert sys.modules["torch"]._C._len_torch_function_stack() == 0
