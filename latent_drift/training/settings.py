"""What decides a run's numbers, beside its stability config: kept in its folder and its checkpoints, and unchanged by a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from latent_drift.errors import UsageError

KINDS: Final = ("ode", "raccoon")

PRECISIONS: Final = ("float32", "bfloat16", "float16")

LARGEST_SEED: Final = 2**32 - 1
"""Seeds beyond it belong to held-out data."""

LARGEST_BATCH: Final = 2**24
"""Far beyond what any machine holds; above it the list of the items alone would fill the memory before anything could refuse."""

HELD_OUT: Final = 2**40
"""Added to a run's seed for data that it never trains on."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of one run.

    Attributes:
        kind: "ode" or "raccoon".
        sizes: of the model, by argument name.
        steps: optimizer steps of the whole run.
        batch_size: items a step, of all processes together.
        data: what `data.open_data` takes.
        seed: of weights, data and noise.
        precision: of the forward pass.
        optimizer, optimizer_arguments: by name.
        scheduler, scheduler_arguments: by name.
        loss_weights: of the model's three terms.
        checkpoint_every: steps between checkpoints.
    """

    kind: str
    sizes: Mapping[str, int]
    steps: int
    batch_size: int
    data: str
    seed: int
    precision: str
    optimizer: str
    optimizer_arguments: Mapping[str, Any]
    scheduler: str
    scheduler_arguments: Mapping[str, Any]
    loss_weights: tuple[float, float, float]
    checkpoint_every: int

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            problems.append(f"the model must be one of {', '.join(KINDS)}; got {self.kind!r}")
        for name, least in (("steps", 0), ("batch_size", 1), ("checkpoint_every", 1)):
            value = getattr(self, name)
            if value < least:
                problems.append(f"{option_of(name)} must be at least {least}; got {value}")
        if self.batch_size > LARGEST_BATCH:
            problems.append(f"--batch-size must be at most {LARGEST_BATCH}; got {self.batch_size}")
        if not 0 <= self.seed <= LARGEST_SEED:
            problems.append(f"--seed must be from 0 to {LARGEST_SEED}; got {self.seed}")
        if self.precision not in PRECISIONS:
            problems.append(f"--precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if problems:
            raise UsageError("; ".join(problems))
        for name in ("sizes", "optimizer_arguments", "scheduler_arguments"):
            object.__setattr__(self, name, dict(getattr(self, name)))  # one of its own, that processes can send each other
        object.__setattr__(self, "loss_weights", tuple(float(weight) for weight in self.loss_weights))

    def document(self) -> dict[str, Any]:
        """Plain data, for run.json and checkpoints."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value for name, value in plain.items()
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> RunSettings:
        """The settings that `document` gave.

        Raises:
            UsageError: a setting is missing or unknown: the file is of another release of this package.
        """
        known = {field.name for field in fields(cls)}
        wrong = sorted(known.symmetric_difference(document))
        if wrong:
            raise UsageError(f"the settings do not fit this release of latent-drift ({', '.join(wrong)}); use the release that wrote them")
        return cls(**document)


def option_of(name: str) -> str:
    """The command line's option for a setting."""
    return {"optimizer_arguments": "--opt", "scheduler_arguments": "--sched", "loss_weights": "--loss-weights"}.get(
        name, f"--{name.replace('_', '-')}"
    )


@dataclass(frozen=True, slots=True)
class GivenSettings:
    """What the command line said: None where it said nothing."""

    sizes: Mapping[str, int]
    steps: int | None = None
    batch_size: int | None = None
    data: str | None = None
    seed: int | None = None
    precision: str | None = None
    optimizer: str | None = None
    optimizer_arguments: Mapping[str, Any] | None = None
    scheduler: str | None = None
    scheduler_arguments: Mapping[str, Any] | None = None
    loss_weights: tuple[float, float, float] | None = None
    checkpoint_every: int | None = None

    def said(self) -> dict[str, Any]:
        """The settings that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "sizes"}

    def disagreements(self, saved: RunSettings) -> list[str]:
        """One sentence for each given setting, steps apart, that a saved run has otherwise."""
        found: list[tuple[str, Any, Any]] = [
            (option_of(name), value, saved.sizes.get(name)) for name, value in self.sizes.items() if value != saved.sizes.get(name)
        ]
        for name, value in self.said().items():
            before = getattr(saved, name)
            before = dict(before) if isinstance(before, Mapping) else before
            if name != "steps" and value != before:
                found.append((option_of(name), value, before))
        return [f"{option} is {_shown(before)} in the run, {_shown(value)} was given" for option, value, before in found]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "nothing"
    return str(value)
