"""What differs between two configs, by field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from latent_drift.config.frozen import freeze
from latent_drift.config.overlay import leaves
from latent_drift.config.v1 import StabilityConfig


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that two configs do not agree on."""

    path: str
    before: Any
    """None where the first has no such field (another kind of clip, say); see `only_in`."""
    after: Any
    only_in: str | None = None
    """"before" or "after" where only one of them has the field."""

    def __str__(self) -> str:
        before = "(absent)" if self.only_in == "after" else shown(self.before)
        after = "(absent)" if self.only_in == "before" else shown(self.after)
        return f"{self.path}: {before} -> {after}"


def shown(value: Any) -> str:
    """A value as messages and tables show it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown(element) for element in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)


def compare(before: StabilityConfig | Mapping[str, Any], after: StabilityConfig | Mapping[str, Any]) -> tuple[Difference, ...]:
    """The values that differ, by dotted path and in the order of the second config; empty if both give the same numerics.

    Takes configs or nested mappings of values. Identity (version, hash, profile, overrides) is not compared: two releases
    with the same values are the same numerics.
    """
    first, second = _leaves(before), _leaves(after)
    found = [
        Difference(path, first.get(path), value, None if path in first else "after")
        for path, value in second.items()
        if path not in first or not _same(first[path], value)
    ]
    found += [Difference(path, value, None, "before") for path, value in first.items() if path not in second]
    return tuple(found)


def _same(a: Any, b: Any) -> bool:
    """Equal values; True is not 1."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _leaves(config: StabilityConfig | Mapping[str, Any]) -> dict[str, Any]:
    values = config.values() if isinstance(config, StabilityConfig) else config
    return dict(leaves(freeze(values)))


def describe_differences(differences: Iterable[Difference]) -> str:
    """One difference a line, or the sentence that there are none."""
    return "\n".join(str(difference) for difference in differences) or "the values are equal"


def compare_saved(saved: Mapping[str, Any], config: StabilityConfig) -> str | None:
    """What to tell somebody whose checkpoint carries `saved` (a config's `document()`) and who loads it under `config`.

    None where both give the same numerics. Otherwise both identities and every field that differs.

    Raises:
        ConfigError: `saved` is no config.
    """
    from latent_drift.config.load import load

    before = load(saved)
    differences = compare(before, config)
    if not differences:
        return None
    return f"saved under {before.identity}, loaded under {config.identity}; {len(differences)} fields differ:\n" + "\n".join(
        f"  {difference}" for difference in differences
    )
