"""Where each value of a config came from, and what every source said on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from latent_drift.config import sources
from latent_drift.config.compare import shown
from latent_drift.config.frozen import thaw
from latent_drift.config.load import Source, argument_statements, resolve
from latent_drift.config.notes import note_on, notes_of
from latent_drift.config.overlay import leaves
from latent_drift.config.problems import known_paths, unknown_key
from latent_drift.config.sources import Statement
from latent_drift.config.v1 import StabilityConfig
from latent_drift.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Origin:
    """One value, and the source that gave it."""

    path: str
    value: Any
    source: str
    note: str | None = None
    """What the release says about the value, where it is still the release's own."""

    def __str__(self) -> str:
        note = f"  ({self.note})" if self.note else ""
        return f"{self.path} = {shown(self.value)}  from {self.source}{note}"


@dataclass(frozen=True, slots=True)
class Consulted:
    """One source in the order of precedence, what it said, and whether that counted."""

    source: str
    said: str
    counted: bool

    def __str__(self) -> str:
        return f"{self.source}: {self.said}{'' if self.counted else ' (overruled)'}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A config with the origin of each of its values; `str()` is the whole story, one line a source and one a value."""

    config: StabilityConfig
    consulted: tuple[Consulted, ...]
    """The sources, the earliest (package default) first."""
    origins: Mapping[str, Origin]
    """Dotted path -> origin, for every value."""

    def __getitem__(self, path: str) -> Origin:
        return self.origins[path]

    def only(self, paths: Iterable[str]) -> Explanation:
        """The part of the explanation that is about these values and sections.

        Raises:
            ConfigError: the config has no such value or section.
        """
        kept: dict[str, Origin] = {}
        for wanted in paths:
            found = {path: origin for path, origin in self.origins.items() if path == wanted or path.startswith(f"{wanted}.")}
            if not found:
                raise ConfigError(f"{wanted}: {unknown_key(wanted, known_paths())}")
            kept |= found
        return replace(self, origins=kept)

    def __str__(self) -> str:
        return "\n".join([self.config.identity, *(f"  {source}" for source in self.consulted), *(str(origin) for origin in self.origins.values())])

    def document(self) -> dict[str, Any]:
        """The explanation as plain data."""
        return {
            "identity": self.config.identity,
            "sources": [{"source": source.source, "said": source.said, "counted": source.counted} for source in self.consulted],
            "values": [
                {"path": origin.path, "value": thaw(origin.value), "source": origin.source, "note": origin.note} for origin in self.origins.values()
            ],
        }


def explain(source: Source | None = None, *, profile: str | None = None, **overrides: Any) -> Explanation:
    """Where each value of `load(source, profile=profile, **overrides)` comes from; takes what `load` takes.

    Sources that are overruled are listed too, broken ones with what is wrong with them.

    Raises:
        ConfigError: as for `load`.
    """
    said = argument_statements(source, profile, overrides)
    consulted = [Consulted(statement.origin, str(statement), True) for statement in said] or [Consulted("argument", "nothing", True)]
    for name, look in ((sources.ENVIRONMENT, sources.from_environment), (f"pyproject.toml [tool.{sources.TABLE}]", sources.from_project)):
        is_needed = not any(later.settles for later in said)
        statement, description = _asked(look, is_needed)
        consulted.insert(0, Consulted(name if statement is None else statement.origin, description, is_needed))
        if is_needed and statement is not None:
            said.insert(0, statement)
    consulted.insert(0, Consulted("package default", "the newest release", not any(statement.settles for statement in said)))
    resolution = resolve(said)
    config = resolution.config
    notes = notes_of(config)
    origins = {
        path: Origin(path, value, resolution.origins[path], note_on(notes, path) if resolution.is_of_release(path) else None)
        for path, value in leaves(config.values())
    }
    return Explanation(config, tuple(consulted), origins)


def _asked(look: Callable[[], Statement | None], is_needed: bool) -> tuple[Statement | None, str]:
    try:
        statement = look()
    except ConfigError as error:
        if is_needed:
            raise
        return None, f"broken: {error}"
    return statement, "nothing" if statement is None else str(statement)
