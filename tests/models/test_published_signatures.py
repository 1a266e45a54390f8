"""Every function, class and method of the published script takes what it took: the same names in the same order, with the same defaults."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import latent_drift

PUBLISHED = ast.parse((Path(__file__).parent / "published_signatures.txt").read_text(encoding="utf-8"))

BASES = {"nn.Module": torch.nn.Module, "Dataset": torch.utils.data.Dataset}


def _functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for statement in PUBLISHED.body:
        if isinstance(statement, ast.FunctionDef):
            yield statement.name, statement
        elif isinstance(statement, ast.ClassDef):
            for method in statement.body:
                if isinstance(method, ast.FunctionDef):
                    yield f"{statement.name}.{method.name}", method


FUNCTIONS = dict(_functions())
CLASSES = {s.name: s for s in PUBLISHED.body if isinstance(s, ast.ClassDef)}


def departures(ours: Callable[..., Any], published: ast.FunctionDef) -> list[str]:
    """In what a call written for the published signature could fail or mean something else."""
    parameters = [p for p in inspect.signature(ours).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    arguments = published.args
    required = len(arguments.args) - len(arguments.defaults)
    found = []
    for i, argument in enumerate(arguments.args):
        ours_here = parameters[i] if i < len(parameters) else None
        if ours_here is None or ours_here.name != argument.arg or ours_here.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            found.append(f"position {i}: {argument.arg} was published, here is {ours_here}")
        elif i >= required and ours_here.default != (default := ast.literal_eval(arguments.defaults[i - required])):
            found.append(f"{argument.arg}: default {default!r} was published, here is {ours_here.default!r}")
    if arguments.vararg and not any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        found.append("further positional arguments were taken")
    more = parameters[len(arguments.args) :]
    found += [f"{p.name} is required now" for p in more if p.default is p.empty and p.kind is not inspect.Parameter.VAR_POSITIONAL]
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_is_the_published_one(name: str) -> None:
    owner, _, attribute = name.partition(".")
    ours = getattr(latent_drift, owner)
    if attribute:
        ours = inspect.getattr_static(ours, attribute, None) or getattr(ours, attribute)
    if any(isinstance(d, ast.Name) and d.id == "property" for d in FUNCTIONS[name].decorator_list):
        assert isinstance(ours, property)
    else:
        assert departures(ours, FUNCTIONS[name]) == []


@pytest.mark.parametrize("name", CLASSES)
def test_bases_are_the_published_ones(name: str) -> None:
    ours = getattr(latent_drift, name)
    for base in map(ast.unparse, CLASSES[name].bases):
        if base == "ABC":
            assert inspect.isabstract(ours)
        else:
            assert issubclass(ours, BASES.get(base) or getattr(latent_drift, base))


def test_constants_are_there() -> None:
    names = [s.targets[0].id for s in PUBLISHED.body if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)]
    assert len(names) == 10
    assert [n for n in names if not hasattr(latent_drift, n)] == []


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        (lambda ode, z, start, tf, n_steps: z, "position 2"),
        (lambda ode, z, ts, tf, n_steps, method: z, "method is required"),
        (lambda ode, z, ts, tf: z, "position 4"),
        (lambda ode, z, ts, tf, *, n_steps: z, "position 4"),
    ],
)
def test_a_departure_is_found(ours: Callable[..., Any], reason: str) -> None:
    assert any(reason in found for found in departures(ours, FUNCTIONS["solve_ode"]))


def test_a_changed_default_is_found() -> None:
    def log_data(self: Any, n_samples: int, seq_len: int = 51, drift_point: int | None = None) -> None: ...

    assert departures(log_data, FUNCTIONS["LogDataset.__init__"]) == ["seq_len: default 50 was published, here is 51"]
