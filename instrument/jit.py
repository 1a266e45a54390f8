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
from torch._dynamo.variables import torch as dynamo_torch
from torch.jit import _builtins

from instrument.interception import Replacement

_BUILT_ON_FIRST_USE: tuple[Callable[[], Any], ...] = (
    trace_rules.get_torch_obj_rule_map,
    trace_rules.get_tensor_method,
    dynamo_torch.TorchInGraphFunctionVariable._get_handlers,
    overrides.get_ignored_functions,
    overrides.get_default_nowrap_functions,
    overrides.get_testing_overrides,
    overrides._get_overridable_functions,
    overrides._get_tensor_methods,
    dynamo_torch.get_overridable_functions,
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
    """Let every stand-in for an operator script as the operator, and have the operator's name for whoever asks `torch.overrides`."""
    table = _table()
    stand_ins = _stand_ins(replacements)
    for original, stand_in in stand_ins.items():
        operator = table.get(id(original))
        if operator is not None:
            table[id(stand_in)] = operator
    names = overrides._get_overridable_functions()[1]
    names.update({stand_in: names[original] for original, stand_in in stand_ins.items() if original in names})
    _exchange(stand_ins)


def unregister(replacements: list[Replacement]) -> None:
    """Take the stand-ins out again."""
    table = _table()
    names = overrides._get_overridable_functions()[1]
    stand_ins = _stand_ins(replacements)
    for stand_in in stand_ins.values():
        table.pop(id(stand_in), None)
        names.pop(stand_in, None)
    _exchange({stand_in: original for original, stand_in in stand_ins.items()})


def _stand_ins(replacements: list[Replacement]) -> dict[Any, Any]:
    """By what they stand for."""
    return {r.installed.__wrapped__: r.installed for r in replacements if hasattr(r.installed, "__wrapped__")}


def _exchange(functions: dict[Any, Any]) -> None:
    """Put functions in the place of others in what `torch.overrides` lists: a script looks for the ones that it knows by name."""
    for listed in overrides._get_overridable_functions()[0].values():
        listed[:] = [functions.get(function, function) for function in listed]
    methods = overrides._get_tensor_methods()
    for old in methods & functions.keys():
        methods.remove(old)
        methods.add(functions[old])
