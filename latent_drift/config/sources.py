"""Where a config may be named: the nearest pyproject.toml, the environment, a file, an argument."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latent_drift.config.catalogue import RELEASE_ONLY, Release, release_from
from latent_drift.config.migrate import migrate
from latent_drift.config.overlay import expand
from latent_drift.config.problems import unknown_key
from latent_drift.config.v1 import StabilityConfig, Values
from latent_drift.errors import ConfigError

ENVIRONMENT = "LATENT_DRIFT_CONFIG"
"""Name of the environment variable that holds a pin or a path."""

TABLE = "latent-drift"
"""Name of the table under `[tool]`."""

TABLE_KEYS = ("stability", "profile", "patches", "instrument")
"""Keys of `[tool.latent-drift]`; the first two are read here, the others by the tools they name."""

_SAVED_ONLY = frozenset({"title", "released", "profiles"})
"""Keys that only a whole saved config has."""


@dataclass(frozen=True)
class Statement:
    """What one source says: a pin, a saved config or a release of its own (each puts aside everything said before), a profile, overrides."""

    origin: str
    pin: str | None = None
    sha256: str | None = None
    saved: Mapping[str, Any] | None = None
    release: Release | None = None
    profile: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settles(self) -> bool:
        """Whether nothing said before it matters."""
        return self.pin is not None or self.saved is not None or self.release is not None

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing at all."""
        return not self.settles and self.profile is None and not self.overrides

    def __str__(self) -> str:
        parts = []
        if self.saved is not None:
            parts.append(f"a saved config of {self.saved.get('version')}")
        if self.release is not None:
            parts.append(f"the release {self.release}")
        if self.pin is not None:
            parts.append(f"stability {self.pin!r}")
        if self.profile is not None:
            parts.append(f"profile {self.profile!r}")
        if self.overrides:
            parts.append(f"{len(self.overrides)} overrides")
        return ", ".join(parts) or "nothing"


def from_text(text: str, origin: str, directory: Path | None = None) -> Statement:
    """What a pin or a path says. A path is what ends in .toml, .json or .lock; relative ones start at `directory`."""
    text = text.strip()
    if text.lower().endswith((".toml", ".json", ".lock")):
        return from_file((directory or Path()) / Path(text).expanduser(), origin)
    return Statement(origin, pin=text)


def from_file(path: Path, origin: str | None = None) -> Statement:
    """What a TOML or JSON file says.

    Raises:
        ConfigError: it cannot be read, or is no config; the message names the path inside it.
    """
    origin = str(path) if origin is None else f"{origin}: {path}"
    document = read_document(path)
    if path.name == "pyproject.toml":
        statement = _from_pyproject(document, path)
        if statement is None:
            raise ConfigError(f"{path}: there is no [tool.{TABLE}] table that names a stability config")
        return statement
    if "schema_version" in document:
        document = migrate(document, origin)
    if not document:
        raise ConfigError(f'{origin}: says nothing. A config file names a release, e.g. version = "~=1.0", values that differ from it, or both.')
    return from_mapping(document, origin)


def read_document(path: Path) -> dict[str, Any]:
    """The table in a TOML file, or the object in a JSON file (.json, .lock).

    Raises:
        ConfigError: the file is missing, is not valid, names a key twice, or holds something else than a table.
    """
    try:
        if path.suffix.lower() == ".toml":
            import tomllib  # not every config comes from TOML

            return tomllib.loads(path.read_text(encoding="utf-8"))
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no config file {path} (working directory {working_directory() or 'removed'})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as a config: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected an object with the sections of a config, got {type(document).__name__}")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def from_mapping(document: Mapping[str, Any], origin: str) -> Statement:
    """What a mapping says: a saved config, a release, a lock, a pin (`version`, `sha256`, `profile`, `overrides`, sections), or overrides only.

    Raises:
        ConfigError: it has a schema but no version, or a key that no config has.
    """
    document = {key: value for key, value in document.items() if key != "$schema"}  # an editor's own key
    if "schema_version" in document:
        document = migrate(document, origin)
    if _is_lock(document):
        return _from_lock(document, origin)
    if RELEASE_ONLY & document.keys():
        return Statement(origin, release=release_from(document, origin))
    if _SAVED_ONLY & document.keys():
        return Statement(origin, saved=document)
    about = {"schema_version", "version", "sha256", "profile", "overrides"}
    if about - {"profile"} & document.keys() and "version" not in document:
        raise ConfigError(f'{origin}: version: missing. Name the release that the values are for, e.g. "version": "~=1.0".')
    if _required_sections() <= document.keys():
        return Statement(origin, saved=document)
    pin, profile = document.get("version"), document.get("profile")
    for name, value in (("version", pin), ("profile", profile), ("sha256", document.get("sha256"))):
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{origin}: {name}: expected text, got {value!r}")
    recorded = document.get("overrides", {})
    if not isinstance(recorded, Mapping):
        raise ConfigError(f"{origin}: overrides: expected a table of dotted paths and values, got {recorded!r}")
    overrides = expand({**recorded, **{key: value for key, value in document.items() if key not in about}}, origin)
    return Statement(origin, pin=pin, sha256=document.get("sha256"), profile=profile, overrides=overrides)


def _required_sections() -> frozenset[str]:
    return frozenset(name for name, info in Values.model_fields.items() if info.is_required())


def _is_lock(document: Mapping[str, Any]) -> bool:
    return "lock_version" in document


def _from_lock(document: Mapping[str, Any], origin: str) -> Statement:
    from latent_drift.config.lock import Lock

    lock = Lock.from_document(document, origin)
    if lock.tampering is not None:
        raise ConfigError(f"{origin}: {lock.tampering}. Write it anew: latent-drift config lock")
    return Statement(origin, pin=f"=={lock.version}", sha256=lock.sha256, profile=lock.profile, overrides=expand(lock.overrides, origin))


def from_config(config: StabilityConfig, origin: str) -> Statement:
    """What a config that is already resolved says."""
    return Statement(origin, saved=config.document())


def from_environment(environ: Mapping[str, str] | None = None) -> Statement | None:
    """What `LATENT_DRIFT_CONFIG` says; None where it is unset or empty."""
    text = (os.environ if environ is None else environ).get(ENVIRONMENT, "").strip()
    return from_text(text, ENVIRONMENT) if text else None


def working_directory() -> Path | None:
    """The working directory; None where it was removed."""
    try:
        return Path.cwd()
    except OSError:
        return None


def from_project(directory: Path | None = None) -> Statement | None:
    """What `[tool.latent-drift]` says in the first pyproject.toml met walking up from `directory` (the working directory).

    None where there is no such file, or its table names no config. A pyproject.toml without the table
    ends the walk: a project does not inherit the pin of the directory that it happens to lie in.
    """
    directory = working_directory() if directory is None else directory
    if directory is None:
        return None
    for parent in (directory, *directory.parents):
        path = parent / "pyproject.toml"
        if path.is_file():
            return _from_pyproject(read_document(path), path)
    return None


def _from_pyproject(document: Mapping[str, Any], path: Path) -> Statement | None:
    tool = document.get("tool", {})
    if isinstance(tool, Mapping) and TABLE.replace("-", "_") in tool:
        raise ConfigError(f"{path}: the table [tool.{TABLE.replace('-', '_')}] is spelled [tool.{TABLE}]")
    table = tool.get(TABLE, {}) if isinstance(tool, Mapping) else {}
    origin = f"{path} [tool.{TABLE}]"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{origin}: expected a table, got {table!r}")
    for key in table:
        if key not in TABLE_KEYS:
            raise ConfigError(f"{origin}: {key}: {unknown_key(key, TABLE_KEYS)} (known: {', '.join(TABLE_KEYS)})")
    stability, profile = table.get("stability"), table.get("profile")
    if profile is not None and not isinstance(profile, str):
        raise ConfigError(f"{origin}: profile: expected the name of a profile, got {profile!r}")
    if isinstance(stability, str):
        said = from_text(stability, origin, path.parent)
    elif isinstance(stability, Mapping):
        said = from_mapping(stability, f"{path} [tool.{TABLE}.stability]")
    elif stability is None:
        return None if profile is None else Statement(origin, profile=profile)
    else:
        raise ConfigError(f'{origin}: stability: expected a pin such as "~=1.0", a path or a table, got {stability!r}')
    if profile is not None:
        said = replace(said, profile=profile)
    return said
