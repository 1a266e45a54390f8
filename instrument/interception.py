"""Replacing attributes and putting the very same objects back: the only module that touches torch's names.

Looking up, replacing and undoing are three functions. Every replacement remembers whether its owner held the name itself
(`AdamW.step` is inherited: writing the original back would leave a copy on the subclass) and what else pointed at the same
object (`from torch import exp`, a class attribute, a default argument, a closure, a table of functions).
"""

from __future__ import annotations

import functools
import logging
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

_ABSENT: Any = object()


@dataclass(frozen=True, slots=True)
class Replacement:
    """One attribute that was replaced. `before` is the raw value from `vars(owner)`, or a marker where the name was inherited."""

    owner: Any
    name: str
    before: Any
    installed: Any

    def undo(self) -> bool:
        """Restore the owner exactly; False if somebody else had patched the name on top of ours meanwhile.

        The first torch.compile of a process marks LBFGS.step and SparseAdam.step as not to be traced, once and for all. If that happened
        while ours stood there, the original gets that mark.
        """
        current = vars(self.owner).get(self.name, _ABSENT)
        ours = current is self.installed
        if getattr(current, "_torchdynamo_orig_callable", None) is self.installed and self.before is not _ABSENT:
            setattr(self.owner, self.name, torch._dynamo.disable(self.before, reason=current._torchdynamo_disable_msg))
            return True
        if self.before is not _ABSENT:
            setattr(self.owner, self.name, self.before)
        elif self.name in vars(self.owner):
            delattr(self.owner, self.name)
        return ours


def lookup(owner: Any, name: str) -> Any:
    """The object that a caller of `owner.name` reaches, a class's function unbound."""
    return getattr(owner, name)


def replace_attribute(owner: Any, name: str, new: Any) -> Replacement:
    """Set `owner.name` (a module or a class) to `new`; returns what undoes it."""
    replacement = Replacement(owner, name, vars(owner).get(name, _ABSENT), new)
    setattr(owner, name, new)
    return replacement


def restore(replacements: list[Replacement]) -> list[str]:
    """Undo in reverse order; returns the names that somebody else had patched on top of ours (they are restored as well)."""
    foreign = []
    while replacements:
        replacement = replacements.pop()
        if not replacement.undo():
            foreign.append(f"{getattr(replacement.owner, '__name__', replacement.owner)}.{replacement.name}")
    if foreign:
        logger.warning("patched by somebody else while the guards were installed, restored to the original all the same: %s", ", ".join(foreign))
    return foreign


# Names bound earlier ------------------------------------------------------------------------------------------------

# Modules whose own references stay: torch reaches its functions through the attributes that are replaced, and no other
# module of these names them. torch.distributions, torch.functional and torch.nn do hold some by name.
_OWN = ("instrument", "latent_drift", "patches")
_SCANNED_TORCH = ("torch.distributions", "torch.functional", "torch.nn.modules", "torch.nn.utils", "torch.nn.init", "torch_optimizer")


def _is_scanned(name: str) -> bool:
    top = name.partition(".")[0]
    if top == "torch":
        return name.startswith(_SCANNED_TORCH)
    return (top not in _OWN and top not in sys.stdlib_module_names) or top == "__main__"


def _is_somebodys(name: str) -> bool:
    """Modules that were imported inside a block, torch's own too, bound what stood there: all but ours and Python's are looked through on leaving."""
    top = name.partition(".")[0]
    return top == "__main__" or (top not in _OWN and top not in sys.stdlib_module_names)


Undo = Callable[[], None]


class _Rebinder:
    """Replaces references to the keys of a table (by identity) with its values, and remembers how to put them back."""

    def __init__(self, table: Mapping[int, Any]) -> None:
        self._table = table
        # A stand-in keeps its original in a closure: that reference is the one that must stay.
        self._new_ones = frozenset(id(new) for new in table.values())
        self._seen: set[int] = set(self._new_ones)
        self.undos: list[Undo] = []

    def _new(self, value: Any) -> Any:
        return self._table.get(id(value), _ABSENT)

    def mapping(self, values: dict[Any, Any]) -> None:
        if self._table.keys().isdisjoint(map(id, values.values())):
            return
        for key, value in list(values.items()):
            new = self._new(value)
            if new is not _ABSENT:
                values[key] = new
                self.undos.append(functools.partial(_put_back_item, values, key, new, value))

    def keys(self, values: dict[Any, Any] | set[Any]) -> None:
        """A table that is looked up by function (`HANDLED[torch.mean]`) has to know the function by its present name, in its old place."""
        if not self._table.keys().isdisjoint(map(id, values)):
            _exchange_keys(values, self._table)
            self.undos.append(functools.partial(_put_back_keys, values, self._new_ones))

    def sequence(self, values: list[Any]) -> None:
        for index, value in enumerate(values):
            new = self._new(value)
            if new is not _ABSENT:
                values[index] = new
                self.undos.append(functools.partial(_put_back_index, values, new, value))

    def function(self, function: types.FunctionType) -> None:
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        defaults = function.__defaults__
        if defaults is not None and not self._table.keys().isdisjoint(map(id, defaults)):
            new_defaults = tuple(self._table.get(id(v), v) for v in defaults)
            function.__defaults__ = new_defaults
            self.undos.append(functools.partial(_put_back_defaults, function, new_defaults, defaults))
        if function.__kwdefaults__:
            self.mapping(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # an empty cell: the name is bound later
                continue
            new = self._new(value)
            if new is not _ABSENT:
                cell.cell_contents = new
                self.undos.append(functools.partial(_put_back_cell, cell, new, value))
            else:
                self.value(value)

    def owner_class(self, cls: type) -> None:
        if id(cls) in self._seen:
            return
        self._seen.add(id(cls))
        for name, raw in list(vars(cls).items()):
            inner = raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw
            new = self._new(inner)
            if new is not _ABSENT:
                # A builtin does not bind as a method but a Python function does: the stand-in must not start to.
                replaced: Any = staticmethod(new) if isinstance(raw, staticmethod) or not hasattr(type(inner), "__get__") else new
                setattr(cls, name, replaced)
                self.undos.append(functools.partial(_put_back_attribute, cls, name, replaced, raw))
            else:
                self.value(inner, classes=False)

    def value(self, value: Any, *, classes: bool = True) -> None:
        """Follow one reference: a function, class, table of functions, partial or model found in a namespace."""
        if isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, dict):
            if 0 < len(value) < 1000:
                self.mapping(value)
                self.keys(value)
        elif isinstance(value, set):
            if 0 < len(value) < 1000:
                self.keys(value)
        elif isinstance(value, list):
            if 0 < len(value) < 1000 and not self._table.keys().isdisjoint(map(id, value)):
                self.sequence(value)
        elif isinstance(value, functools.partial):
            new = self._new(value.func)
            if new is not _ABSENT:
                self.undos.append(functools.partial(_put_back_partial, value, new, value.func))
                _set_partial(value, new)
        elif isinstance(value, nn.Module):
            if id(value) not in self._seen:
                for module in value.modules():
                    if id(module) not in self._seen:
                        self._seen.add(id(module))
                        self.mapping(vars(module))
        elif classes and isinstance(value, type):
            self.owner_class(value)

    def frame(self, frame: types.FrameType) -> None:
        """What the local names of a running function lead to: models, tables, partials. The local names themselves stay: a function that keeps
        `original = torch.exp` to compare with, or to call, means the original."""
        for value in list(frame.f_locals.values()):
            if type(value) in _LED_TO or isinstance(value, nn.Module):
                self.value(value)

    def namespace(self, values: dict[str, Any], *, module: str | None) -> None:
        """Everything that a module's (or frame's) names lead to. Classes and functions of other modules are theirs."""
        self.mapping(values)
        for value in list(values.values()):
            kind = type(value)
            if kind in _FOLLOWED or isinstance(value, type | nn.Module):
                if module is not None and isinstance(value, type | types.FunctionType) and value.__module__ != module:
                    continue
                self.value(value)


_LED_TO = frozenset({dict, set, list, functools.partial})
_FOLLOWED = frozenset({types.FunctionType, dict, set, list, functools.partial})


def _put_back_item(values: dict[Any, Any], key: Any, new: Any, old: Any) -> None:
    if values.get(key) is new:
        values[key] = old


def _exchange_keys(values: dict[Any, Any] | set[Any], table: Mapping[int, Any]) -> None:
    """Exchange keys (or members) by identity, in place and in order."""
    if isinstance(values, set):
        for old in [v for v in values if id(v) in table]:
            values.remove(old)
            values.add(table[id(old)])
        return
    items = [(table.get(id(key), key), value) for key, value in values.items()]
    values.clear()
    values.update(items)


def _put_back_keys(values: dict[Any, Any] | set[Any], stand_ins: frozenset[int]) -> None:
    """Those that were added while the block was open too."""
    _exchange_keys(values, {id(key): key.__wrapped__ for key in values if id(key) in stand_ins})


def _put_back_index(values: list[Any], new: Any, old: Any) -> None:
    for index, value in enumerate(values):
        if value is new:
            values[index] = old


def _put_back_defaults(function: types.FunctionType, new: tuple[Any, ...], old: tuple[Any, ...]) -> None:
    if function.__defaults__ is new:
        function.__defaults__ = old


def _put_back_cell(cell: types.CellType, new: Any, old: Any) -> None:
    if cell.cell_contents is new:
        cell.cell_contents = old


def _put_back_attribute(cls: type, name: str, new: Any, old: Any) -> None:
    if vars(cls).get(name) is new:
        setattr(cls, name, old)


def _set_partial(value: functools.partial[Any], function: Any) -> None:
    value.__setstate__((function, value.args, value.keywords, vars(value)))  # type: ignore[attr-defined]


def _put_back_partial(value: functools.partial[Any], new: Any, old: Any) -> None:
    if value.func is new:
        _set_partial(value, old)


def rebind(
    table: Mapping[int, Any],
    landmarks: Iterable[int],
    *,
    modules: Mapping[str, Any],
    frames: Iterable[types.FrameType] = (),
    late: bool = False,
) -> list[Undo]:
    """Point every name bound earlier to a key of `table` (an id) at the table's value.

    Args:
        table: id of the old object -> new object.
        landmarks: ids of objects (torch's modules and classes) of which a module that can hold a reference must name at least one; a module
            that names none is passed over unread, which keeps entering cheap with thousands of modules loaded.
        modules: the modules to look through, by name.
        frames: running frames whose local models and tables are looked through as well.
        late: the modules were imported while the names were replaced: torch's own are looked through as well.

    Returns:
        The undo functions, each of which leaves alone what has been rebound by somebody else since.
    """
    rebinder = _Rebinder(table)
    telling = frozenset(landmarks) | table.keys()
    is_scanned = _is_somebodys if late else _is_scanned
    for name, module in list(modules.items()):
        if module is None or not is_scanned(name):
            continue
        namespace = getattr(module, "__dict__", None)
        if type(namespace) is dict and not telling.isdisjoint(map(id, list(namespace.values()))):
            rebinder.namespace(namespace, module=name)
    for frame in frames:
        rebinder.frame(frame)
    return rebinder.undos
