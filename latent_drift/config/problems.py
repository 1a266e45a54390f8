"""What is wrong with a document, said by path: one line per problem, with the closest known key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from latent_drift.config.overlay import KIND
from latent_drift.config.v1 import StabilityConfig

_SHOWN = 60
"""Characters of a refused value that a message repeats."""


def describe(error: ValidationError, document: Mapping[str, Any], where: str, model: type[BaseModel] = StabilityConfig) -> str:
    """Every problem that pydantic found in `document`, one a line below a head line that says where.

    The path is the document's own: tags that pydantic puts between the keys of a union are left out.
    """
    by_path: dict[str, tuple[list[str], Any]] = {}
    for problem in error.errors(include_url=False, include_context=False):
        path, given = _place(problem["loc"], document)
        texts, _ = by_path.setdefault(path, ([], given))
        text = _sentence(problem["type"], problem["msg"], path, given, model)
        if text not in texts:
            texts.append(text)
    lines = [f"{path or 'the document'}: {' or '.join(texts)}{_got(given)}" for path, (texts, given) in by_path.items()]
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    return f"{where}: {len(lines)} problems\n" + "\n".join(f"  {line}" for line in lines)


class _Absent:
    """No value was given."""


def _place(loc: tuple[int | str, ...], document: Any) -> tuple[str, Any]:
    """The dotted path that a pydantic location stands for, and what the document holds there."""
    keys: list[str] = []
    here = document
    for step, element in enumerate(loc):
        if isinstance(here, Mapping):
            if element in here:
                keys.append(str(element))
                here = here[element]
            elif step == len(loc) - 1 and here.get(KIND) != element:
                keys.append(str(element))
                here = _Absent
            # otherwise the tag of a union, which is no key of the document
        elif isinstance(here, (list, tuple)) and isinstance(element, int) and element < len(here):
            keys[-1] += f"[{element}]"
            here = here[element]
        else:
            break  # the name of an alternative that a single value was tried against
    return ".".join(keys), here


def _sentence(kind: str, message: str, path: str, given: Any, model: type[BaseModel]) -> str:
    if kind == "extra_forbidden":
        return unknown_key(path, known_paths(model))
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found":
        return f"missing {KIND}: one of {', '.join(_kinds(path))}"
    if kind == "union_tag_invalid":
        return f"unknown {KIND} {given.get(KIND)!r}; expected one of {', '.join(_kinds(path))}"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return "should be a table of values"
    message = message.removeprefix("Value error, ")
    return message.removeprefix("Input ") if message.startswith("Input ") else message[0].lower() + message[1:]


def _got(given: Any) -> str:
    """What arrived, where that is a single value."""
    if given is _Absent or isinstance(given, Mapping):
        return ""
    shown = repr(given)
    return f"; got {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}"


def unknown_key(path: str, known: Iterable[str]) -> str:
    """What to say about a key that is not among the known ones: the closest of them, or, where none resembles it, those of the same place."""
    known = list(known)
    near = closest(path, known)
    if near:
        return f"unknown key; closest known: {near}"
    parent = path.rpartition(".")[0]
    return f"unknown key; known here: {', '.join(other for other in known if other.rpartition('.')[0] == parent)}"


def closest(path: str, known: Iterable[str]) -> str | None:
    """The known path that somebody who wrote `path` most likely meant, siblings first; None where none resembles it."""
    from difflib import SequenceMatcher  # only on the way to an error

    parent, _, name = path.rpartition(".")

    def likeness(candidate: str) -> float:
        candidate_parent, _, candidate_name = candidate.rpartition(".")
        score = SequenceMatcher(None, name, candidate_name).ratio()
        return score + (0.3 if candidate_parent == parent else 0.1 * SequenceMatcher(None, parent, candidate_parent).ratio())

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.6 else None


def known_paths(model: type[BaseModel] = StabilityConfig) -> list[str]:
    """Every dotted path that a document can have, containers included, all alternatives of a union."""
    return list(dict.fromkeys(_paths(model, "")))


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        for part in _models(info.annotation):
            yield from _paths(part, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models(part)


def _kinds(path: str) -> list[str]:
    """The tags of the union at a path."""
    model: type[BaseModel] = StabilityConfig
    *parents, name = path.split(".")
    for parent in parents:
        model = next(_models(model.model_fields[parent].annotation))
    return [get_args(part.model_fields[KIND].annotation)[0] for part in _models(model.model_fields[name].annotation)]
