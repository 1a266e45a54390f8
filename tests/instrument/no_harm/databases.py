"""torch's own tables of operators, modules and optimizers, loaded on first use, without what loading them does to the process."""

from __future__ import annotations

import gc
import sys
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch


@cache
def _internal(name: str) -> ModuleType:
    """`torch.testing._internal.<name>`. Its import freezes torch.backends' flags and replaces two `__call__`s: both are undone.

    For every sample the databases look through the whole call stack, sources included, for a `unittest.TestCase`, to note there which sample it is
    at. Here is none to be found; the looking alone was four fifths of a sweep's time.
    """
    import importlib

    calls = {cls: vars(cls).get("__call__") for cls in (torch._C.ScriptFunction, torch._C.ScriptMethod)}
    may_change_flags = torch.backends.flags_frozen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"torch.testing._internal.{name}")
    for cls, call in calls.items():
        cls.__call__ = call
    for user in ("common_utils", "opinfo.core"):
        sys.modules[f"torch.testing._internal.{user}"].__dict__["extract_test_fn"] = lambda: None
    gc.freeze()  # as tests/conftest.py does with what is imported before
    setattr(torch.backends, "__allow_nonbracketed_mutation_flag", not may_change_flags)
    return module


def operators() -> list[Any]:
    """`op_db`: one entry an operator and variant, each with samples in every dtype, and inputs that must raise."""
    entries: list[Any] = _internal("common_methods_invocations").op_db
    return entries


def modules() -> list[Any]:
    """`module_db`: one entry a module of torch.nn."""
    entries: list[Any] = _internal("common_modules").module_db
    return entries


def optimizers() -> list[Any]:
    """`optim_db`: one entry an optimizer of torch.optim."""
    entries: list[Any] = _internal("common_optimizers").optim_db
    return entries


def optimizer_settings(info: Any) -> list[Any]:
    """Every setting of an optimizer that the database knows, each also with foreach, fused and differentiable where they are supported."""
    settings: list[Any] = _internal("common_optimizers")._get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info)
    return settings
