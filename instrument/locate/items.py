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
    given = [each._dataset for each in iterators if hasattr(each, "_dataset")]
    found = {id(each): each for data_set in given for each in _inside(data_set)}
    return [each for each in found.values() if _is_of_script(each) and _size(each) <= MOST_COPIED]


def _inside(data_set: Any) -> list[Dataset[Any]]:
    """The data set, or those that torch's own class gives items of: a part of one (`random_split`), several in turn."""
    if not type(data_set).__module__.startswith("torch.utils.data"):
        return [data_set]
    held = getattr(data_set, "datasets", None) or [getattr(data_set, "dataset", None)]
    return [each for inner in held if isinstance(inner, Dataset) for each in _inside(inner)]


def _is_of_script(data_set: Dataset[Any]) -> bool:
    code = getattr(getattr(type(data_set), "__getitem__", None), "__code__", None)
    return code is not None and is_users(code.co_filename) and hasattr(data_set, "__len__")


def _size(data_set: Dataset[Any]) -> int:
    return sum(table.numel() for value in parts(data_set) for each in (value, *_listed(value)) if (table := as_table(each)) is not None)


def _listed(value: Any) -> list[Any]:
    return list(value[: INSIDE * INSIDE]) if isinstance(value, list | tuple) else []


def methods_of(data_set: Dataset[Any]) -> list[ast.AST]:
    """The source of the class of a data set, without what makes one."""
    return [item for item in _body_of_class(data_set) if not _makes_one(item)]


def statements_that_keep_a_hole(data_set: Dataset[Any]) -> list[ast.stmt]:
    """Of `__init__`: those that alone give a value to an attribute that holds a number that is not finite, in order."""
    bad = {name for name, value in vars(data_set).items() if is_hole(value)}
    keeping = [
        (statement, kept)
        for item in _body_of_class(data_set)
        if _makes_one(item)
        for statement in ast.walk(item)
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) and (kept := _attributes_written(statement))
    ]
    return [statement for statement, kept in keeping if any(name in bad and sum(name in others for _, others in keeping) == 1 for name in kept)]


def _body_of_class(data_set: Dataset[Any]) -> list[ast.stmt]:
    tree = parsed(inspect.getfile(type(data_set)))
    name = type(data_set).__name__
    classes = [] if tree is None else [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    return [item for node in classes for item in node.body]


def _makes_one(item: ast.AST) -> bool:
    return isinstance(item, ast.FunctionDef) and item.name == "__init__"


def _attributes_written(statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {
        node.attr
        for target in targets
        for node in ast.walk(target)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


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
