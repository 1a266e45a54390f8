"""Schema 0: the flat constants of the audited utilities, as scripts saved them before there were configs.

A document is `{"schema_version": 0, "EPS_FLOAT32": 1e-08, ...}` with any of the names below. It has no
version of its own: its values are the published ones (config 0.9.0) but for what it names. Never edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_drift.config.overlay import expand
from latent_drift.errors import ConfigError

_ALL = ("float16", "bfloat16", "float32", "float64")
_WIDE = ("float32", "float64")
_HALF = ("float16", "bfloat16")  # the audit took bfloat16 for a float16


def _each(dtypes: tuple[str, ...], field: str) -> tuple[str, ...]:
    return tuple(f"precision.{dtype}.{field}" for dtype in dtypes)


PATHS: dict[str, tuple[str, ...]] = {
    "EPS_FLOAT32": _each(_WIDE, "division_eps"),
    "EPS_FLOAT16": _each(_HALF, "division_eps"),
    "EPS_LOG": _each(_ALL, "log_floor"),
    "LOG_MIN": _each(_ALL, "exp_min"),
    "LOG_MAX": (*_each(_ALL, "exp_max"), "exp.bound"),
    "LOGVAR_MIN": _each(_ALL, "log_variance_min"),
    "LOGVAR_MAX": _each(_ALL, "log_variance_max"),
    "SCALE_MIN": ("latent.scale_min",),
    "SCALE_MAX": ("latent.scale_max",),
    "GRAD_CLIP_NORM": ("gradient.default_max_norm", "gradient.clip.max_norm"),
    "GRAD_CLIP_VALUE": ("gradient.default_max_value",),
    "ATTENTION_MASK_VALUE": _each(_ALL, "mask_value"),
}
"""Published name -> the dotted paths of schema 1 that its value goes to."""

DROPPED = ("EPS_DIVISION",)
"""One number for all dtypes beside one per dtype: schema 1 keeps those."""


def to_v1(document: Mapping[str, Any]) -> dict[str, Any]:
    """The schema 1 document (a pin of 0.9.0 with overrides) that gives the values of a schema 0 document.

    Raises:
        ConfigError: it has a name that schema 0 never had.
    """
    result: dict[str, Any] = {"schema_version": 1, "version": "0.9.0"}
    unknown = [name for name in document if name not in PATHS and name not in DROPPED and name not in {"schema_version", "$schema"}]
    if unknown:
        from difflib import get_close_matches  # only on the way to an error

        near = get_close_matches(str(unknown[0]), [*PATHS, *DROPPED], n=1)
        raise ConfigError(f"schema 0: {', '.join(map(str, unknown))}: unknown key{f'; closest known: {near[0]}' if near else ''}")
    for name, paths in PATHS.items():
        if name in document:
            result |= dict.fromkeys(paths, document[name])
    if "GRAD_CLIP_NORM" in document:
        result["gradient.clip.kind"] = "norm"
    return expand(result, "schema 0")
