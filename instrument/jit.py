"""What TorchScript has to be told: that a stand-in is the operator it stands for.

`torch.jit.script` finds operators in a table keyed by the identity of functions, built on first use from the names in torch's modules. Built
while stand-ins hold those names it would miss the originals for good, so it is built before anything is replaced.
"""

from __future__ import annotations

from typing import Any

from torch.jit import _builtins

from instrument.interception import Replacement


def _table() -> dict[int, str]:
    table: dict[int, str] = _builtins._get_builtin_table()  # type: ignore[no-untyped-call]
    return table


def prepare() -> None:
    """Build the table while torch's names still are torch's own."""
    _table()


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
