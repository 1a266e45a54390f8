"""`key=value` arguments of the command line, typed by their literal, and the signatures they have to fit."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from latent_drift.errors import UsageError
from latent_drift.training.names import did_you_mean

_WORDS: Final = {"true": True, "false": False, "none": None, "nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf}


def typed(text: str) -> Any:
    """The value of a Python literal (`1e-3`, `(0.9, 0.99)`, `True`, `none`); the text itself where it is no literal."""
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def parse(assignments: Iterable[str], option: str) -> dict[str, Any]:
    """The values of `key=value` texts.

    Raises:
        UsageError: one is not of that form, or a key comes twice.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        key = key.strip()
        if not sign or not key.isidentifier():
            raise UsageError(f"{option} expects key=value, for example {option} weight_decay=0.01; got {assignment!r}")
        if key in values:
            raise UsageError(f"{option} {key} is given twice: {values[key]!r} and {typed(text)!r}; leave one out")
        values[key] = typed(text)
    return values


def require_fit(what: str, option: str, make: Callable[..., Any], given: Mapping[str, Any], supplied: Iterable[str]) -> None:
    """Refuse arguments that `make` does not have, the lack of ones that it needs, and values of another kind than they ask for.

    Args:
        what: for the message, such as "optimizer SGD".
        option: that the arguments come from.
        make: a class or function.
        given: the arguments of the command line.
        supplied: parameters that are filled in without being asked for.

    Raises:
        UsageError: naming the nearest argument, the missing one, or what a value should be.
    """
    supplied = set(supplied)
    known = {name: p for name, p in inspect.signature(make).parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    open_to_all = {name: p for name, p in known.items() if name not in supplied}
    for name in given:
        if name not in open_to_all:
            arguments = ", ".join(_shown(p) for p in open_to_all.values()) or "none"
            raise UsageError(f"{option} {name}: {what} has no such argument. {did_you_mean(name, open_to_all)}\n  its arguments: {arguments}")
    missing = [name for name, p in open_to_all.items() if p.default is p.empty and name not in given]
    if missing:
        raise UsageError(f"{what} needs {' and '.join(missing)}: add {' '.join(f'{option} {name}=VALUE' for name in missing)}")
    for name, value in given.items():
        if not _is_finite(value):
            raise UsageError(f"{option} {name} must be finite; got {value!r}")
        expected = _expected(open_to_all[name], value)
        if expected is not None:
            raise UsageError(f"{option} {name} of {what} expects {expected}; got {value!r}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, (tuple, list, set)):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def _expected(parameter: inspect.Parameter, value: Any) -> str | None:
    """What a value should have been, going by the parameter's default or annotation; None where it may be that."""
    default = parameter.default
    if isinstance(default, bool):
        return None if value in (True, False) else "True or False"
    if isinstance(default, (int, float)) or parameter.annotation in (int, float, "int", "float"):
        example = "" if default is parameter.empty else f", such as {default}"
        # Some take a list as well, one number for each group of parameters: that is for them to judge.
        return f"a number{example}" if value is None or isinstance(value, (bool, str)) else None
    if isinstance(default, tuple):
        fits = isinstance(value, (tuple, list)) and len(value) == len(default) and not any(isinstance(item, (bool, str)) for item in value)
        return None if fits else f"{len(default)} numbers, such as {str(default).replace(' ', '')}"
    if isinstance(default, str):
        return None if isinstance(value, str) else f"a word, such as {default}"
    annotated = "" if parameter.annotation is parameter.empty else inspect.formatannotation(parameter.annotation)
    if isinstance(value, str) and annotated and not any(word in annotated for word in ("str", "Literal", "Any")):
        return "True, False or none" if "bool" in annotated else f"a value of the kind {annotated.removeprefix('collections.abc.')}"
    return None


def _shown(parameter: inspect.Parameter) -> str:
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
