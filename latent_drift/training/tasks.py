"""What the two models have of their own in a training run: sizes, data, loss, defaults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from latent_drift.config import StabilityConfig
from latent_drift.errors import UsageError
from latent_drift.models import alphabet, train_ode
from latent_drift.models.batches import DEFAULT_BATCH
from latent_drift.models.flat_weights import LARGEST_RELATIVE_STEP
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.log_alphabet import NUM_LOG_CLASSES, log_vocab_size
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.raccoon_steps import WEIGHT_DECAY
from latent_drift.models.train_raccoon import DEFAULT_LR, DEFAULT_STEPS
from latent_drift.training import optimizers, schedules
from latent_drift.training.checkpoint import Checkpoint
from latent_drift.training.data import settled
from latent_drift.training.names import did_you_mean
from latent_drift.training.settings import GivenSettings, RunSettings


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a run has where the command line says nothing."""

    sizes: Mapping[str, int]
    steps: int
    batch_size: int
    optimizer_arguments: Mapping[str, Any]
    """Of AdamW; another optimizer has its own."""
    scheduler: str
    loss_weights: tuple[float, float, float]
    checkpoint_every: int
    optimizer: str = "AdamW"
    precision: str = "float32"
    data: str = "synthetic"
    seed: int = 0


class AbstractTask(ABC):
    """One of the two models as something to train."""

    kind: ClassVar[str]
    defaults: ClassVar[Defaults]
    parts: ClassVar[tuple[str, ...]]
    """Statistics of a step, as the model names them."""
    headline: ClassVar[str]
    """The one of them to show beside the loss."""
    update_ratio: ClassVar[float]
    """Bound of an update relative to its parameter, where the config has none."""

    @classmethod
    def settings(cls, given: GivenSettings) -> RunSettings:
        """The settings of a new run: what was given, and the defaults for the rest.

        Raises:
            UsageError: a name, argument or value that no run can have.
        """
        own, said = cls.defaults, given.said()
        cls._require_sizes(given.sizes)
        optimizer = optimizers.canonical_name(said.pop("optimizer", own.optimizer))
        base = own.optimizer_arguments if optimizer == own.optimizer else {}
        optimizer_arguments = {**base, **said.pop("optimizer_arguments", {})}
        optimizers.require_arguments(optimizer, optimizer_arguments)
        scheduler = schedules.canonical_name(said.pop("scheduler", own.scheduler))
        scheduler_arguments = said.pop("scheduler_arguments", {})
        schedules.require_arguments(scheduler, scheduler_arguments)
        plain = {name: said.get(name, getattr(own, name)) for name in _PLAIN} | {"data": settled(said.get("data", own.data))}
        return RunSettings(
            kind=cls.kind,
            sizes={**own.sizes, **given.sizes},
            optimizer=optimizer,
            optimizer_arguments=optimizer_arguments,
            scheduler=scheduler,
            scheduler_arguments=scheduler_arguments,
            **plain,
        )

    @classmethod
    def continued(cls, given: GivenSettings, checkpoint: Checkpoint, folder: Path) -> RunSettings:
        """The settings of a run that goes on: its own, with more steps if more are asked for.

        Raises:
            UsageError: it has taken all its steps, or a setting is given that it does not have.
        """
        saved = checkpoint.settings
        if given.optimizer is not None:
            given = replace(given, optimizer=optimizers.canonical_name(given.optimizer))
        if given.scheduler is not None:
            given = replace(given, scheduler=schedules.canonical_name(given.scheduler))
        if given.data is not None:
            given = replace(given, data=settled(given.data))
        different = given.disagreements(saved)
        if different:
            raise UsageError(
                f"--resume keeps the settings of the run in {folder}: {'; '.join(different)}. "
                "Leave these options out, or start a new run with another --out."
            )
        steps = saved.steps if given.steps is None else given.steps
        if steps <= checkpoint.step:
            raise UsageError(
                f"--resume: the run in {folder} has taken {checkpoint.step} steps, of {steps}: there is nothing left to do. "
                f"Give more, for example --steps {2 * max(checkpoint.step, 1)}, or start a new run with another --out."
            )
        if steps != saved.steps and schedules.follows_length(saved.scheduler, saved.scheduler_arguments):
            raise UsageError(
                f"--steps {steps}: the schedule {saved.scheduler} of the run in {folder} was laid out over its {saved.steps} steps "
                "and cannot be stretched. Leave --steps out, or start a new run with another --out."
            )
        return replace(saved, steps=steps)

    @classmethod
    def _require_sizes(cls, sizes: Mapping[str, Any]) -> None:
        for name, value in sizes.items():
            if name not in cls.defaults.sizes:
                known = ", ".join(f"{key}={default}" for key, default in cls.defaults.sizes.items())
                raise UsageError(f"--size {name}: {cls.kind} has no such size. {did_you_mean(name, cls.defaults.sizes)}\n  its sizes: {known}")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"--size {name} must be a whole number of at least 1; got {value!r}")

    @staticmethod
    @abstractmethod
    def build(sizes: Mapping[str, int], config: StabilityConfig) -> nn.Module:
        """A new model on the CPU."""

    @staticmethod
    @abstractmethod
    def loss(model: nn.Module, batch: tuple[Tensor, ...], step: int, weights: tuple[float, float, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch at a step, 0-d, and its statistics, detached."""


class OdeTask(AbstractTask):
    """The latent ODE over characters, as `train_ode` trains it. Sizes are the published ones, batch and slices what a CPU trains in minutes."""

    kind = "ode"
    defaults = Defaults(
        sizes={"latent_size": 64, "hidden_size": 128, "embed_size": 64, "num_slices": 64},
        steps=3000,
        batch_size=16,
        optimizer_arguments={"lr": train_ode.LEARNING_RATE, "weight_decay": train_ode.WEIGHT_DECAY},
        scheduler="constant",
        loss_weights=(1.0, 0.05, 1.0),
        checkpoint_every=200,
    )
    parts = ("recon", "latent_ep", "ode_reg")
    headline = "recon"
    update_ratio = train_ode.UPDATE_RATIO

    @staticmethod
    def build(sizes: Mapping[str, int], config: StabilityConfig) -> nn.Module:
        return DeterministicLatentODE(
            alphabet.vocab_size, sizes["latent_size"], sizes["hidden_size"], sizes["embed_size"], sizes["num_slices"], config=config
        )

    @staticmethod
    def loss(model: nn.Module, batch: tuple[Tensor, ...], step: int, weights: tuple[float, float, float]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, stats = model(batch[0], (weights[0], train_ode.latent_weight_at(step, weights[1]), weights[2]))
        return loss, stats


class RaccoonTask(AbstractTask):
    """The log classifier, with the rate and schedule of `train_raccoon_classifier`."""

    kind = "raccoon"
    defaults = Defaults(
        sizes={"latent_dim": 32, "hidden_dim": 64, "embed_dim": 32},
        steps=DEFAULT_STEPS,
        batch_size=DEFAULT_BATCH,
        optimizer_arguments={"lr": DEFAULT_LR, "weight_decay": WEIGHT_DECAY},
        scheduler="warmup-cosine",
        loss_weights=(1.0, 0.1, 0.01),
        checkpoint_every=200,
    )
    parts = ("class_loss", "kl_loss", "ep_loss", "accuracy")
    headline = "accuracy"
    update_ratio = LARGEST_RELATIVE_STEP

    @staticmethod
    def build(sizes: Mapping[str, int], config: StabilityConfig) -> nn.Module:
        return RaccoonLogClassifier(log_vocab_size, NUM_LOG_CLASSES, sizes["latent_dim"], sizes["hidden_dim"], sizes["embed_dim"], config=config)

    @staticmethod
    def loss(model: nn.Module, batch: tuple[Tensor, ...], step: int, weights: tuple[float, float, float]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, stats = model(batch[0], batch[1], weights)
        return loss, {name: stats[name] for name in RaccoonTask.parts}


_PLAIN: Final = ("steps", "batch_size", "data", "seed", "precision", "loss_weights", "checkpoint_every")

TASKS: Final[dict[str, type[AbstractTask]]] = {task.kind: task for task in (OdeTask, RaccoonTask)}
"""By the name that the command line has for them."""
