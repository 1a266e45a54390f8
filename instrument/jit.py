"""What TorchScript, Dynamo and torch.overrides have to be told: that a stand-in is the operator it stands for.

They find operators in tables keyed by the identity of functions, built on first use from the names in torch's modules (Dynamo's by the first
optimizer of a process). Built while stand-ins hold those names they would miss the originals for good, so they are built before anything is
replaced. Importing Dynamo takes a second that every script with an optimizer pays anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import overrides
from torch._dynamo import trace_rules
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
from torch.jit import _builtins

from instrument.interception import Replacement

_BUILT_ON_FIRST_USE: tuple[Callable[[], Any], ...] = (
    trace_rules.get_torch_obj_rule_map,
    trace_rules.get_tensor_method,
    TorchInGraphFunctionVariable._get_handlers,
    overrides.get_ignored_functions,
    overrides.get_default_nowrap_functions,
    overrides.get_testing_overrides,
    overrides._get_overridable_functions,
)


def _table() -> dict[int, str]:
    table: dict[int, str] = _builtins._get_builtin_table()  # type: ignore[no-untyped-call]
    return table


def prepare() -> None:
    """Build the tables while torch's names still are torch's own."""
    _table()
    for build in _BUILT_ON_FIRST_USE:
        build()


def register(replacements: list[Replacement]) -> None:
    """Let every stand-in for an operator script as the operator."""
    table = _table()
    for replacement in replacements:
        original: Any = getattr(replacement.installed, "__wrapped__", None)
        operator = table.get(id(original))
        if operator is not None:
            table[id(replacement.installed)] = operator


def unregister(replacements: list[Replacement]) -> None:
    """Take the stand-ins out again."""
    table = _table()
    for replacement in replacements:
        table.pop(id(replacement.installed), None)
