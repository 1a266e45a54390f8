"""Stability configs: released, pinned, provable. Plain data and pydantic; loads no torch.

load()                                     the newest release, as pyproject.toml and LATENT_DRIFT_CONFIG say
load("~=1.0", profile="guard")             a pin, and a profile
load(gradient={"clip": {"max_norm": 0.5}}) overrides, recorded by path
available()                                versions with dates and hashes
explain("~=1.0")                           where each value came from
"""

from __future__ import annotations

from latent_drift.config.active import active, using, using_everywhere
from latent_drift.config.catalogue import Release, installed
from latent_drift.config.compare import Difference, compare, compare_saved, describe_differences
from latent_drift.config.explain import Explanation, explain
from latent_drift.config.load import load
from latent_drift.config.v1 import DTYPES, SCHEMA_VERSION, StabilityConfig, dtype_name

__all__ = [
    "DTYPES",
    "SCHEMA_VERSION",
    "Difference",
    "Explanation",
    "Release",
    "StabilityConfig",
    "active",
    "available",
    "compare",
    "compare_saved",
    "describe_differences",
    "dtype_name",
    "explain",
    "load",
    "using",
    "using_everywhere",
]


def available() -> tuple[Release, ...]:
    """The installed releases, oldest version first: each with `version`, `title`, `released` (a date, or None for a draft) and `sha256`.

    Raises:
        ConfigError: a release does not have the hash that it states.
    """
    return installed().releases()
