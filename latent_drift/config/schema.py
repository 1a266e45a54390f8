"""JSON Schema of what a person may write into a config file, for editors."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from latent_drift.config import v1
from latent_drift.config.catalogue import installed
from latent_drift.config.overlay import KIND
from latent_drift.config.v1 import StabilityConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of a stability.toml or .json: a version (the newest without one), and as many values as are to differ from it.

    It accepts whole saved configs too. Nothing is required: everything left out is the release's.
    What JSON Schema cannot say (no NaN or Inf, a warm-up within its history) is left to `load`.
    """
    schema = _partial(_described(StabilityConfig.model_json_schema()))
    properties = schema["properties"]
    properties["$schema"] = {"type": "string", "description": "Where an editor finds this schema; ignored by load."}
    properties["version"]["description"] = 'The release that the values are for: a version ("1.0.0") or a PEP 440 specifier ("~=1.0").'
    properties["profile"]["enum"] = list(dict.fromkeys(name for release in installed().releases() for name in release.profiles))
    return {"$schema": DIALECT, **schema, "title": "latent-drift stability config", "minProperties": 1}


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with each field's docstring as its description.

    They are read from the source here, where they are needed: pydantic's own way of doing so (`use_attribute_docstrings`) reads it at import.
    """
    for name, fields in _docstrings().items():
        definition = schema if name == StabilityConfig.__name__ else schema["$defs"].get(name, {})
        for field, text in fields.items():
            entry = definition.get("properties", {}).get(field)
            if entry is not None:
                entry.setdefault("description", text)
    return schema


def _docstrings() -> dict[str, dict[str, str]]:
    """Class name -> field name -> the string literal below the field; a class has those of its bases in the same module too."""
    classes = [node for node in ast.parse(inspect.getsource(v1)).body if isinstance(node, ast.ClassDef)]
    found: dict[str, dict[str, str]] = {}
    for node in classes:
        own = {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        inherited = [found[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in found]
        found[node.name] = {name: text for fields in [*inherited, own] for name, text in fields.items()}
    return found


def _partial(node: Any) -> Any:
    """The schema with nothing required, so that a file may name only what it changes.

    Tagged unions become `anyOf`: `{"max_norm": 0.5}` without a kind keeps the kind of the release and fits several alternatives.
    """
    if isinstance(node, Mapping):
        kept = {key: _partial(value) for key, value in node.items() if key not in {"required", "discriminator", "default"}}
        if KIND in kept.get("properties", {}) or "oneOf" not in kept:
            return kept
        return {"anyOf": kept.pop("oneOf"), **kept}
    if isinstance(node, list):
        return [_partial(element) for element in node]
    return node
