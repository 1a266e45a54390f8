"""The released configs: data files beside this module, read, verified and chosen by a pin."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from latent_drift.config.frozen import FrozenMapping
from latent_drift.config.v1 import canonical_sha256
from latent_drift.errors import ConfigError

RELEASES = Path(__file__).parent / "releases"


@dataclass(frozen=True, slots=True)
class Release:
    """One released set of values (or a draft of one): version, title, date, hash."""

    version: str
    title: str
    released: datetime.date | None
    """None for a draft."""
    sha256: str
    superseded: bool
    """Kept to reproduce old results: chosen only by a pin that nothing else satisfies."""
    document: Mapping[str, Any] = field(repr=False, compare=False)
    """The data file's content."""

    @property
    def draft(self) -> bool:
        """Whether the values may still move."""
        return self.released is None

    @property
    def notes(self) -> Mapping[str, str]:
        """Dotted path -> what is known to be wrong with the value there, or why it is as it is."""
        notes: Mapping[str, str] = self.document["notes"]
        return notes

    @property
    def profiles(self) -> Mapping[str, Mapping[str, Any]]:
        """Profile name -> its overrides."""
        profiles: Mapping[str, Mapping[str, Any]] = self.document["profiles"]
        return profiles

    @property
    def values(self) -> dict[str, Any]:
        """The values before any profile."""
        return {key: value for key, value in self.document.items() if key not in _ABOUT}

    def __str__(self) -> str:
        return f"{self.version} ({'draft' if self.released is None else self.released.isoformat()})"


_ABOUT = frozenset({"schema_version", "version", "title", "released", "sha256", "superseded", "default_profile", "profiles", "notes"})
"""Keys of a release document that say something about the values instead of being one."""

RELEASE_ONLY = frozenset({"superseded", "default_profile", "notes"})
"""Keys that no other document has."""


def document_sha256(document: Mapping[str, Any]) -> str:
    """The hash of a release document: of its canonical JSON without the field `sha256`."""
    return canonical_sha256({key: value for key, value in document.items() if key != "sha256"})


def release_from(document: Mapping[str, Any], origin: str) -> Release:
    """The release that a document holds, verified.

    Raises:
        ConfigError: it lacks what a release must have, or does not have the hash that it states.
    """
    missing = sorted(_ABOUT - document.keys())
    if missing:
        raise ConfigError(f"{origin}: {', '.join(missing)}: missing from what is otherwise a release of stability values")
    try:
        found = document_sha256(document)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{origin}: a release is plain JSON data with finite numbers: {error}") from error
    if found != document["sha256"]:
        raise ConfigError(
            f"{origin}: config {document['version']} was changed after it was made: it states sha256 {document['sha256']}, its content has {found}. "
            f"Reinstall latent-drift; to use other values, override them: load({document['version']!r}, gradient=...)."
        )
    try:
        Version(document["version"])
        released = document["released"]
        return Release(
            version=document["version"],
            title=document["title"],
            released=None if released is None else datetime.date.fromisoformat(released),
            sha256=document["sha256"],
            superseded=document["superseded"],
            document=FrozenMapping(document),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{origin}: no release of stability values: {error}") from error


def read_release(path: Path) -> Release:
    """The release in a data file of the catalogue, verified.

    Raises:
        ConfigError: the file cannot be read, is not the version that its name says, or does not have the hash that it states.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a release of stability values: {error}. Reinstall latent-drift.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected an object, got {type(document).__name__}. Reinstall latent-drift.")
    release = release_from(document, str(path))
    if release.version != path.stem:
        raise ConfigError(f"{path}: is version {release.version} by its content. Reinstall latent-drift.")
    return release


DRAFT = "+draft"
"""What the identity of a draft has behind its version."""


class Catalogue:
    """The releases in one directory, each read and verified when it is first asked for."""

    def __init__(self, directory: Path = RELEASES) -> None:
        self.directory = directory
        self._read = cache(read_release)
        self.versions: tuple[str, ...] = tuple(sorted((path.stem for path in directory.glob("*.json")), key=Version))
        if not self.versions:
            raise ConfigError(f"no stability config releases in {directory}. Reinstall latent-drift.")

    def release(self, version: str) -> Release:
        """The release of exactly this version as it is spelled in its file's name."""
        return self._read(self.directory / f"{version}.json")

    def releases(self) -> tuple[Release, ...]:
        """All releases, oldest version first."""
        return tuple(self.release(version) for version in self.versions)

    def select(self, pin: str) -> Release:
        """The release that a pin chooses: a version ("1.0.0") or a PEP 440 specifier ("~=1.0", ">=1,<2"; "" for any).

        The newest version that satisfies the pin, where a dated release goes before a draft and
        both before one that is superseded. "1.0.0+draft", as identities of drafts say, holds until that version has a date.

        Raises:
            ConfigError: the pin is neither, or nothing satisfies it.
        """
        wants_draft = pin.rstrip().endswith(DRAFT)
        specifier = parse_pin(pin.rstrip().removesuffix(DRAFT) if wants_draft else pin)
        matching = [version for version in self.versions if specifier.contains(version, prereleases=bool(specifier.prereleases))]
        if not matching:
            # PEP 440: pre-releases are for who names them, or where there is nothing else.
            matching = [version for version in self.versions if specifier.contains(version, prereleases=True)]
        if not matching:
            listing = ", ".join(str(release) for release in self.releases())
            nearest = min(self.versions, key=lambda version: _distance(version, specifier))
            raise ConfigError(
                f"no stability config satisfies {pin!r}. Available: {listing}. Nearest: {nearest}. "
                f"Pin {nearest!r}, or upgrade latent-drift for newer ones."
            )
        chosen = max((self.release(version) for version in matching), key=_preference)
        if wants_draft and not chosen.draft:
            raise ConfigError(
                f"{pin!r}: config {chosen} is no draft any more, and its values may have moved before it was released. Pin {chosen.version!r}."
            )
        return chosen


def _preference(release: Release) -> tuple[bool, bool, Version]:
    return not release.superseded, not release.draft, Version(release.version)


def parse_pin(pin: str) -> SpecifierSet:
    """The specifier that a pin means; a bare version is exact.

    Raises:
        ConfigError: it is neither a version nor a specifier.
    """
    try:
        return SpecifierSet(f"=={Version(pin)}")
    except InvalidVersion:
        pass
    try:
        return SpecifierSet(pin)
    except InvalidSpecifier as error:
        raise ConfigError(
            f"{pin!r} is no pin of a stability config. Expected a version such as '1.0.0', a PEP 440 specifier such as '~=1.0' or '>=1,<2' "
            f"('~=' needs two numbers), or the path of a .toml or .json file. Profiles are named apart: load(profile='guard')."
        ) from error


def _distance(version: str, specifier: SpecifierSet) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How far a version is from the nearest version that the specifier names: major first, then minor, then micro."""

    def between(wanted: Version, have: Version) -> tuple[int, ...]:
        return abs(wanted.major - have.major), abs(wanted.minor - have.minor), abs(wanted.micro - have.micro)

    have = Version(version)
    newest_first = (-have.major, -have.minor, -have.micro)
    named = list(_named_versions(specifier))
    return min((between(wanted, have) for wanted in named), default=(0, 0, 0)), newest_first


def _named_versions(specifier: SpecifierSet) -> Iterable[Version]:
    for clause in specifier:
        try:
            yield Version(clause.version.removesuffix(".*"))
        except InvalidVersion:  # === compares text, which need not be a version
            continue


@cache
def installed() -> Catalogue:
    """The releases that came with this installation."""
    return Catalogue()
