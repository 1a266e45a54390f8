"""`stability.lock`: the values that a run was promised, and whether the installed release still gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from latent_drift.config.catalogue import Catalogue, installed
from latent_drift.config.compare import compare
from latent_drift.config.frozen import FrozenMapping, thaw
from latent_drift.config.load import resolve
from latent_drift.config.overlay import KIND, at, expand
from latent_drift.config.problems import describe
from latent_drift.config.sources import Statement, read_document
from latent_drift.config.v1 import Section, Sha256, StabilityConfig, canonical_sha256
from latent_drift.errors import ConfigError

LOCK_NAME = "stability.lock"


class Lock(Section):
    """A resolved config as it was promised: release, hash, profile, overrides, all values, and the torch it was made under."""

    lock_version: Literal[1]
    version: str
    draft: bool
    sha256: Sha256
    """Of the release."""
    profile: str
    overrides: FrozenMapping
    digest: Sha256
    """Of the values."""
    torch: str | None
    """Version of torch at the time, None where it was not installed. Told, not enforced: the last bits of a run depend on it, the values do not."""
    values: FrozenMapping
    """All values, nested, so that a difference can be told by field."""

    @classmethod
    def of(cls, config: StabilityConfig) -> Lock:
        """The lock of a config, under the torch that is installed (its metadata is read, it is not imported)."""
        return cls(
            lock_version=1,
            version=config.version,
            draft=config.draft,
            sha256=config.sha256,
            profile=config.profile,
            overrides=config.overrides,
            digest=config.digest,
            torch=torch_version(),
            values=FrozenMapping(config.values()),
        )

    @classmethod
    def from_document(cls, document: Mapping[str, Any], origin: str) -> Lock:
        """The lock that a document holds.

        Raises:
            ConfigError: it is none.
        """
        plain = thaw(document)
        try:
            return cls.model_validate(plain)
        except ValidationError as error:
            raise ConfigError(describe(error, plain, origin, model=cls)) from error

    @property
    def tampering(self) -> str | None:
        """What shows that the file was changed after it was written, or None."""
        found = canonical_sha256(thaw(self.values))
        return (
            None if found == self.digest else f"digest: the lock states {self.digest}, its values have {found}: it was changed after it was written"
        )

    def document(self) -> dict[str, Any]:
        """The lock as plain data."""
        document: dict[str, Any] = self.model_dump(mode="json")
        return document


@dataclass(frozen=True, slots=True)
class LockCheck:
    """The outcome of checking a lock: what breaks its promise, and what is only worth knowing."""

    lock: Lock
    broken: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the installed release gives the locked values."""
        return not self.broken


def read_lock(path: Path) -> Lock:
    """The lock in a file.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    if not path.exists():
        raise ConfigError(f"there is no lock file {path}. Write one with: latent-drift config lock")
    return Lock.from_document(read_document(path), str(path))


def check_lock(lock: Lock, catalogue: Catalogue | None = None) -> LockCheck:
    """Whether the installed releases still give the values that a lock promises.

    A lock whose own values were changed, a changed hash of the same version, an absent version and any value that differs break it;
    another torch, or values that the schema has gained since, are noted.
    """
    catalogue = installed() if catalogue is None else catalogue
    notes = []
    if lock.torch != torch_version():
        notes.append(
            f"torch: locked under {lock.torch or 'no torch'}, installed is {torch_version() or 'no torch'}: results may differ in the last bits"
        )
    if lock.version not in catalogue.versions:
        listing = ", ".join(str(release) for release in catalogue.releases())
        return LockCheck(lock, (f"version: {lock.version} is not installed; available: {listing}",), tuple(notes))
    broken = [] if lock.tampering is None else [lock.tampering]
    release = catalogue.release(lock.version)
    if release.sha256 != lock.sha256:
        moved = " (a draft, which may move until it is released)" if lock.draft else ""
        broken.append(f"sha256: config {lock.version} was locked with {lock.sha256}, the installed one has {release.sha256}{moved}")
    try:
        config = resolve(
            [Statement("lock", pin=f"=={lock.version}", profile=lock.profile, overrides=expand(lock.overrides, "lock"))], catalogue
        ).config
    except ConfigError as error:
        return LockCheck(lock, (*broken, str(error)), tuple(notes))
    for difference in compare(lock.values, config):
        if difference.only_in == "after" and not _was_replaced(difference.path, lock):
            notes.append(f"{difference.path}: new in the schema since the lock was written")
        else:
            broken.append(f"{difference} (locked -> installed)")
    return LockCheck(lock, tuple(broken), tuple(notes))


def _was_replaced(path: str, lock: Lock) -> bool:
    """Whether the locked values have something else at, or in the place of, this path."""
    try:
        return KIND in at(lock.values, path.rpartition(".")[0])
    except (KeyError, TypeError):
        return False


def torch_version() -> str | None:
    """The installed torch's version from its metadata, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch")
    except PackageNotFoundError:
        return None
