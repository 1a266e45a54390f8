"""From what the sources say to one plain config, and back to where each of its values came from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from latent_drift.config import sources
from latent_drift.config.catalogue import Catalogue, Release, installed
from latent_drift.config.compare import Difference, compare
from latent_drift.config.frozen import FrozenMapping, thaw
from latent_drift.config.overlay import KIND, at, expand, lay_over, leaves
from latent_drift.config.problems import closest, describe
from latent_drift.config.sources import Statement
from latent_drift.config.v1 import SCHEMA_VERSION, Section, StabilityConfig
from latent_drift.errors import ConfigError

Source = str | os.PathLike[str] | Mapping[str, Any] | StabilityConfig
"""What names a config: a version or specifier, the path of a TOML or JSON file, a mapping, a config."""


def load(source: Source | None = None, *, profile: str | None = None, **overrides: Any) -> StabilityConfig:
    """The config that the sources name, with overrides, as one frozen value.

    Sources in order, the later wins: the newest release, `[tool.latent-drift]` of the nearest
    pyproject.toml, the environment variable `LATENT_DRIFT_CONFIG`, the argument. One that pins a
    version puts aside everything said before it; one that only gives a profile or overrides adds to it.

    Args:
        source: a version ("1.0.0"), a PEP 440 specifier ("~=1.0"), the path of a .toml or .json file, a
            mapping (a saved config; a pin with overrides; or overrides only), a config, or None.
        profile: "observe", "guard", "train" or "strict"; the release's default ("train") if nothing says otherwise.
        **overrides: sections or single values to replace, e.g. `gradient={"clip": {"kind": "norm", "max_norm": 0.5}}`.
            Nested mappings are merged; a clip of another kind replaces the whole clip. Dotted paths are keys too.

    Raises:
        ConfigError: nothing satisfies the pin, a key is unknown, a value is refused, a release fails its hash.

    Examples:
        >>> load("1.0.0", profile="guard").gradient.clip.kind
        'none'
        >>> load("~=1.0", gradient={"clip": {"max_norm": 0.5}}).overrides["gradient.clip.max_norm"]
        0.5
    """
    if isinstance(source, StabilityConfig) and profile is None and not overrides:
        return source
    return resolve(statements(source, profile, overrides)).config


def statements(source: Source | None, profile: str | None, overrides: Mapping[str, Any]) -> list[Statement]:
    """What every source that matters says, the earliest first; none before one that settles the matter.

    Raises:
        ConfigError: as for `load`.
    """
    said = argument_statements(source, profile, overrides)
    for look in (sources.from_environment, sources.from_project):
        if any(statement.settles for statement in said):
            break
        statement = look()
        if statement is not None:
            said.insert(0, statement)
    return said


def argument_statements(source: Source | None, profile: str | None, overrides: Mapping[str, Any]) -> list[Statement]:
    """What the arguments of a call say: first the source, then profile and overrides; nothing where there is nothing.

    Raises:
        ConfigError: a file, mapping, profile or override is none that a config can have.
    """
    origin = "argument"
    if source is None:
        named = Statement(origin)
    elif isinstance(source, StabilityConfig):
        named = sources.from_config(source, origin)
    elif isinstance(source, str):
        named = sources.from_text(source, origin)
    elif isinstance(source, os.PathLike):
        named = sources.from_file(Path(source), origin)
    elif isinstance(source, Mapping):
        named = sources.from_mapping(source, origin)
    else:
        raise ConfigError(
            f"a stability config is named by a version or specifier, a path, a mapping or a StabilityConfig; got {type(source).__name__} {source!r}"
        )
    if profile is not None and not isinstance(profile, str):
        raise ConfigError(f"profile: expected the name of a profile, got {profile!r}")
    fixed = [key for key in overrides if key.partition(".")[0] in StabilityConfig.IDENTITY]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: says what a config is, and cannot be overridden. Name another release as the first argument.")
    keywords = Statement(origin, profile=profile, overrides=expand(_plain(overrides), origin))
    return [statement for statement in (named, keywords) if not statement.is_empty]


def _plain(value: Any) -> Any:
    """`value` with sections of another config, such as `other.gradient`, as plain data."""
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(element) for key, element in value.items()}
    return value


@dataclass(frozen=True)
class Foundation:
    """What overrides are laid over: a release, or a saved config whose release is not installed."""

    about: Mapping[str, Any]
    """The identity that a resolved config carries."""
    base: Mapping[str, Any]
    """The values before any profile."""
    profiles: Mapping[str, Mapping[str, Any]]
    """The profiles that can be resolved: name -> nested overrides."""
    profile: str
    """The profile where nobody names one."""
    origin: str

    @classmethod
    def of_release(cls, release: Release) -> Foundation:
        about = {
            "schema_version": SCHEMA_VERSION,
            "version": release.version,
            "title": release.title,
            "released": release.released,
            "sha256": release.sha256,
            "profiles": {name: dict(leaves(expand(change))) for name, change in release.profiles.items()},
            "overrides": {},
        }
        return cls(about, release.values, release.profiles, release.document["default_profile"], f"release {release.version}")

    @classmethod
    def of_saved(cls, saved: StabilityConfig) -> Foundation:
        about = {name: value for name, value in saved.document().items() if name in StabilityConfig.IDENTITY}
        return cls(about, saved.values(), {saved.profile: {}}, saved.profile, f"saved config (its release {saved.version} is not installed)")

    def config(self, profile: str, layers: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> StabilityConfig:
        """The config of a profile under layers of overrides (origin, values), which it records as far as they change anything.

        Raises:
            ConfigError: the outcome is no config; the message names the first layer that made it so.
        """
        values: dict[str, Any] = lay_over(self.base, self.profiles[profile])
        about = {**self.about, "profile": profile}
        plain = _validated({**about, **values}, self.origin)
        if not layers:
            return plain
        for _, change in layers:
            values = lay_over(values, change)
        try:
            config = _validated({**about, **values}, layers[-1][0])
        except ConfigError:
            if len(layers) > 1:
                self.config(profile, layers[:-1])  # raises where an earlier layer is to blame
            raise
        return config.model_copy(update={"overrides": FrozenMapping({**plain.overrides, **_recorded(compare(plain, config), config)})})


@dataclass(frozen=True)
class Resolution:
    """A config, and which source gave each of its values."""

    config: StabilityConfig
    said: tuple[Statement, ...]
    """What the sources said, the earliest first."""
    origins: Mapping[str, str]
    """Dotted path -> where its value came from."""
    release_paths: frozenset[str]
    """The paths whose value is the release's own, before profile and overrides."""

    def is_of_release(self, path: str) -> bool:
        """Whether the value there is the release's own."""
        return path in self.release_paths


def resolve(said: Iterable[Statement], catalogue: Catalogue | None = None) -> Resolution:
    """The config that the statements, earliest first, amount to.

    Raises:
        ConfigError: as for `load`.
    """
    catalogue = installed() if catalogue is None else catalogue
    said = tuple(said)
    settling = max((index for index, statement in enumerate(said) if statement.settles), default=None)
    relevant = said if settling is None else said[settling:]
    foundation, layers = _foundation(said[settling] if settling is not None else None, catalogue)
    layers += [(statement.origin, statement.overrides) for statement in relevant if statement.overrides]
    named = [statement for statement in relevant if statement.profile is not None]
    profile = str(named[-1].profile) if named else foundation.profile
    where = relevant[-1].origin if relevant else "package default"
    if profile not in foundation.profiles:
        raise ConfigError(_unknown_profile(where, profile, foundation))
    config = foundation.config(profile, layers)
    origins = _origins(foundation, profile, named[-1].origin if named else "its default", layers, config)
    return Resolution(config, said, origins, frozenset(path for path, origin in origins.items() if origin == foundation.origin))


def _foundation(statement: Statement | None, catalogue: Catalogue) -> tuple[Foundation, list[tuple[str, Mapping[str, Any]]]]:
    """What the settling statement builds on, and the overrides that a saved config brings along."""
    if statement is not None and statement.release is not None:
        own = statement.release
        namesake = catalogue.release(own.version) if own.version in catalogue.versions else own
        if own.sha256 != namesake.sha256 and not own.draft and not namesake.draft:
            raise ConfigError(_hash_mismatch(statement.origin, own.sha256, namesake))
        return Foundation.of_release(own), []
    if statement is None or statement.saved is None:
        try:
            release = catalogue.select("" if statement is None or statement.pin is None else statement.pin)
        except ConfigError as error:
            raise ConfigError(str(error) if statement is None else f"{statement.origin}: {error}") from error
        if statement is not None and statement.sha256 not in (None, release.sha256):
            raise ConfigError(_hash_mismatch(statement.origin, str(statement.sha256), release))
        return Foundation.of_release(release), []
    saved = _validated(statement.saved, statement.origin)
    if saved.version in catalogue.versions:
        release = catalogue.release(saved.version)
        if release.sha256 == saved.sha256:
            foundation = Foundation.of_release(release)
            if saved.profile not in foundation.profiles:
                raise ConfigError(_unknown_profile(statement.origin, saved.profile, foundation))
            foundation = replace(foundation, profile=saved.profile)
            changed = compare(foundation.config(saved.profile), saved)
            return foundation, [(statement.origin, _with_whole_unions(changed, saved))] if changed else []
        if not release.draft and not saved.draft:
            raise ConfigError(_hash_mismatch(statement.origin, saved.sha256, release))
    return Foundation.of_saved(saved), []  # of another installation, or of an earlier state of a draft: its own values are all there is


def _recorded(changed: Iterable[Difference], config: StabilityConfig) -> dict[str, Any]:
    """Differences as overrides by dotted path. Where another kind replaced a union, all of the new one is recorded:
    a parameter that happens to have the value of its namesake in the old kind would be lost otherwise.
    """
    overrides: dict[str, Any] = {}
    for difference in changed:
        if difference.only_in == "before":
            continue
        overrides[difference.path] = difference.after
        parent, _, name = difference.path.rpartition(".")
        if name == KIND:
            overrides |= {f"{parent}.{sibling}": value for sibling, value in at(config.values(), parent).items()}
    return overrides


def _with_whole_unions(changed: Iterable[Difference], config: StabilityConfig) -> dict[str, Any]:
    """Differences as nested overrides, where one inside a union brings the whole alternative along.

    Otherwise a changed `max_norm` alone would be laid over whatever clip another profile has.
    """
    values = config.values()
    overrides: dict[str, Any] = {}
    for difference in changed:
        if difference.only_in == "before":
            continue
        parent = difference.path.rpartition(".")[0]
        siblings = at(values, parent) if parent else values
        if parent and KIND in siblings:
            overrides |= {f"{parent}.{name}": value for name, value in siblings.items()}
        else:
            overrides[difference.path] = at(values, difference.path)
    return expand(overrides)


def _origins(
    foundation: Foundation, profile: str, profile_origin: str, layers: Iterable[tuple[str, Mapping[str, Any]]], config: StabilityConfig
) -> dict[str, str]:
    """Which layer each leaf of the config came from: the last one that names it."""
    given = [
        (foundation.origin, foundation.base),
        (f"{foundation.origin}, profile {profile} ({profile_origin})", foundation.profiles[profile]),
        *layers,
    ]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, change in given:
        values = lay_over(values, change)
        stated = {path for path, _ in leaves(change)}
        origins = {path: origin if path in stated else origins.get(path, origin) for path, _ in leaves(values)}
    return {path: origins.get(path, "schema default") for path, _ in leaves(config.values())}


def _validated(document: Mapping[str, Any], where: str) -> StabilityConfig:
    plain = thaw(document)
    try:
        return StabilityConfig.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(describe(error, plain, where)) from error


def _hash_mismatch(origin: str, expected: str, release: Release) -> str:
    advice = (
        "A draft moves until it is released: pin it again (latent-drift config lock)."
        if release.draft
        else "Reinstall latent-drift, or find out which of the two was changed."
    )
    return f"{origin}: sha256: expected {expected}, but the installed config {release} has {release.sha256}. {advice}"


def _unknown_profile(origin: str, profile: str, foundation: Foundation) -> str:
    if foundation.about["version"] and set(foundation.profiles) != set(foundation.about["profiles"]):
        return (
            f"{origin}: profile {profile!r}: the release of this {foundation.origin}, so its profile cannot be changed from {foundation.profile!r}. "
            f"Install the latent-drift it was saved with, or name an installed release."
        )
    near = closest(profile, foundation.profiles)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"{origin}: profile: config {foundation.about['version']} has no profile {profile!r}; it has {', '.join(foundation.profiles)}.{hint}"
