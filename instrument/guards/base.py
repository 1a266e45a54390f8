"""What every guard is made of: the spellings it replaces, and the stand-in it puts there."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from patches.findings import FINDINGS, Finding

Function = Callable[..., Any]

is_compiling = torch.compiler.is_compiling
is_traced = torch.compiler.is_dynamo_compiling
"""True while Dynamo reads this code. Other compilers run it, on tensors that are not plain."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """One place where an operation can be reached: the attribute `name` of a module or class, and the operation it means."""

    owner: Any
    name: str
    op: str
    inplace: bool = False

    @property
    def path(self) -> str:
        """`torch.exp`, `Tensor.exp_`, `torch.nn.functional.softmax`."""
        prefix = "Tensor" if self.owner is torch.Tensor else getattr(self.owner, "__name__", repr(self.owner))
        return f"{prefix}.{self.name}"


class AbstractGuard(ABC):
    """One hazard: where it can arise, and what stands there instead while a `stable()` block is open.

    A stand-in calls the original with the very arguments it was given, and looks at the result: what the original raises is
    raised, what it returns for inputs that are not plain tensors is returned, and a finite result is passed on untouched.
    """

    code: ClassVar[str]

    @property
    def finding(self) -> Finding:
        """The catalogue's entry for this hazard."""
        return FINDINGS[self.code]

    @abstractmethod
    def spellings(self) -> list[Spelling]:
        """Every attribute to replace. Names that this torch does not have are left out."""

    @abstractmethod
    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        """What replaces `original`."""


def spelled(op: str, *places: tuple[Any, str]) -> list[Spelling]:
    """Spellings of `op` at those (owner, name) places that exist in this torch."""
    return [Spelling(owner, name, op, inplace=name.endswith("_") and not name.endswith("__")) for owner, name in places if hasattr(owner, name)]


def mimic(original: Function, spelling: Spelling) -> Callable[[Function], Function]:
    """Give a stand-in the name, documentation and signature of what it replaces, in a way that pickles and scripts as the original.

    A pickled stand-in is a reference to the public name, so it loads as the original; `torch.jit.script` compiles the original.
    """

    def decorate(function: Function) -> Function:
        functools.update_wrapper(function, original, assigned=("__name__", "__doc__", "__annotations__"))
        if isinstance(spelling.owner, type):
            function.__module__ = "torch" if spelling.owner is torch.Tensor else spelling.owner.__module__
            function.__qualname__ = f"{spelling.owner.__qualname__}.{spelling.name}"
            if inspect.isfunction(original) and original.__qualname__ == function.__qualname__:
                function.__module__ = original.__module__  # Tensor.backward is of torch._tensor
        elif inspect.isfunction(original):
            function.__module__, function.__qualname__ = original.__module__, original.__qualname__
        else:  # a builtin knows itself by a private name; the public one is where it is found
            function.__module__, function.__qualname__ = spelling.owner.__name__, spelling.name
        function.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]
        return function

    return decorate
