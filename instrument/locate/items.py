"""The items of data sets that loaders give at this moment: which of them holds a number that is not finite."""

from __future__ import annotations

import ast
import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter, _SingleProcessDataLoaderIter

from instrument.alive import instances_of
from instrument.callsite import is_users
from instrument.locate.birthplace import INSIDE, as_table, is_hole, parts
from instrument.locate.replay import MOST_COPIED
from instrument.locate.scene import parsed

SECONDS = 2.0
"""For looking through a data set."""


def loaded_data_sets() -> list[Dataset[Any]]:
    """The data sets of the script's own classes that a loader is going through, as far as they are small enough for a copy."""
    iterators = instances_of({_BaseDataLoaderIter, _SingleProcessDataLoaderIter, _MultiProcessingDataLoaderIter})
    found = {id(each._dataset): each._dataset for each in iterators if hasattr(each, "_dataset")}
    return [each for each in found.values() if _is_of_script(each) and _size(each) <= MOST_COPIED]


def _is_of_script(data_set: Dataset[Any]) -> bool:
    code = getattr(getattr(type(data_set), "__getitem__", None), "__code__", None)
    return code is not None and is_users(code.co_filename) and hasattr(data_set, "__len__")


def _size(data_set: Dataset[Any]) -> int:
    return sum(table.numel() for value in parts(data_set) for each in (value, *_listed(value)) if (table := as_table(each)) is not None)


def _listed(value: Any) -> list[Any]:
    return list(value[: INSIDE * INSIDE]) if isinstance(value, list | tuple) else []


def methods_of(data_set: Dataset[Any]) -> list[ast.AST]:
    """The source of the class of a data set, without what makes one."""
    tree = parsed(inspect.getfile(type(data_set)))
    name = type(data_set).__name__
    classes = [] if tree is None else [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    return [item for node in classes for item in node.body if not (isinstance(item, ast.FunctionDef) and item.name == "__init__")]


def bad_item(data_set: Dataset[Any]) -> Callable[[], Any] | None:
    """What makes the first item with a number in it that is not finite; None where there is none, or none was found in time."""
    until = time.perf_counter() + SECONDS
    for index in range(len(data_set)):  # type: ignore[arg-type]
        make = functools.partial(data_set.__getitem__, index)
        if is_hole(make()):
            return make
        if time.perf_counter() > until:
            return None
    return None
