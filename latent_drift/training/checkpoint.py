"""Checkpoints of runs: everything the next step depends on, read without executing anything (`weights_only=True`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

import torch
from torch import Tensor, nn

from latent_drift._version import __version__
from latent_drift.config import StabilityConfig, load
from latent_drift.errors import ConfigError, UsageError
from latent_drift.stability.checkpoint import save_checkpoint_with_validation
from latent_drift.training.settings import KINDS, RunSettings

FILE_NAME: Final = "checkpoint.pt"
PREVIOUS: Final = ".previous"
"""Added to the name of the checkpoint before the last."""

FORMAT: Final = 1
_MARK: Final = "latent_drift_run"  # what no other file of tensors has
_ARCHIVE: Final = b"PK\x03\x04"  # how a file of torch.save begins

_PARTS: Final = {
    "kind": str,
    "settings": Mapping,
    "config": Mapping,
    "step": int,
    "model": Mapping,
    "optimizer": Mapping,
    "optimizer_step": Mapping,
    "schedule": Mapping,
    "random": Mapping,
}
"""What a checkpoint is made of, and its `data`, which may be None."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        path: the file it came from.
        settings: of its run.
        config: the stability config of its run, as it was then.
        step: steps that were taken.
        content: all of it: `model`, `optimizer`, `optimizer_step`, `schedule`, `random`, and what is named here as plain data.
        note: what somebody who reads it should know, or None.
    """

    path: Path
    settings: RunSettings
    config: StabilityConfig
    step: int
    content: Mapping[str, Any]
    note: str | None = None

    @property
    def finished(self) -> bool:
        """Whether its run had taken all its steps."""
        return self.step >= self.settings.steps


def write_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    settings: RunSettings,
    config: StabilityConfig,
    step: int,
    optimizer_step: Mapping[str, Any],
    schedule: Mapping[str, Any],
    random: Mapping[str, Any],
    data: str | None,
) -> Path:
    """Write a checkpoint, whole or not at all; the one before it stays beside it as `<path>.previous`.

    `data` is the fingerprint of the run's data, None where its settings say all about them.

    Raises:
        NumericalError: a weight is not finite; nothing is written.
        OSError: the disk is full, or the like; nothing is changed.
    """
    return save_checkpoint_with_validation(
        model,
        path,
        optimizer,
        latent_drift_run=FORMAT,
        kind=settings.kind,
        settings=settings.document(),
        config=config.document(),
        step=step,
        optimizer_step=dict(optimizer_step),
        schedule=dict(schedule),
        random=dict(random),
        data=data,
        versions={"latent_drift": __version__, "torch": str(torch.__version__)},
    )


def checkpoint_path(given: str | Path) -> Path:
    """The checkpoint that a path names: a file, or a run's folder that holds one.

    Raises:
        UsageError: there is none.
    """
    path = Path(given)
    if path.is_dir():
        inside = path / FILE_NAME
        if not inside.exists() and not inside.with_name(FILE_NAME + PREVIOUS).exists():
            raise UsageError(f"{path}: is a folder without a {FILE_NAME}; give a checkpoint, or the folder of a run (its --out)")
        return inside
    if not path.exists() and not path.with_name(path.name + PREVIOUS).exists():
        raise UsageError(f"{path}: there is no such checkpoint; `latent-drift train` writes one into its --out folder")
    return path


def read_checkpoint(given: str | Path, kind: str | None = None) -> Checkpoint:
    """Read the checkpoint that a path names, or, where its file is damaged, the one before it (which is said in its note).

    Args:
        given: a file or a run's folder.
        kind: "ode" or "raccoon" where only that will do.

    Raises:
        UsageError: there is none, it is no checkpoint of a run, of another kind, or of a later release.
    """
    path = checkpoint_path(given)
    content, failure = _content_of(path)
    note = None
    if content is None:
        previous = path.with_name(path.name + PREVIOUS)
        content, _ = _content_of(previous)
        if content is None:
            raise UsageError(f"{path}: is no checkpoint of latent-drift, or a damaged one: {failure}. `latent-drift train` writes them")
        note = f"{path}: cannot be read ({failure}); taking the checkpoint before it, {previous}, of step {content.get('step')}"
        path = previous
    return _understood(path, content, kind, note)


def _content_of(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The content of a file, or what is wrong with it."""
    if not path.exists():
        return None, "the file is missing"
    try:
        with open(path, "rb") as file:
            start = file.read(len(_ARCHIVE))
    except OSError as error:
        return None, error.strerror or str(error)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file fails in many ways: zip, pickle, system, end of file
        if start[:1] in (b"P", b"\x80") and ("weights_only" in str(error) or "Weights only" in str(error)):
            return None, "it holds pickled objects, which are never run"
        if not start:
            return None, "it is empty"
        return None, "it was cut short or changed" if start == _ARCHIVE else "it is no file of torch.save"
    if not isinstance(content, dict) or _MARK not in content:
        held = f"it holds {', '.join(map(str, list(content)[:4]))}, ..." if isinstance(content, dict) and content else "it holds something else"
        return None, f"{held}; for a bare state dict: model.load_state_dict in Python"
    if not isinstance(content[_MARK], int):
        return None, f"its format is {content[_MARK]!r}"
    if content[_MARK] <= FORMAT:
        wrong = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
        if wrong:
            return None, f"it lacks what a run needs, or holds it in another kind: {', '.join(wrong)}"
    return content, ""


def _understood(path: Path, content: dict[str, Any], kind: str | None, note: str | None) -> Checkpoint:
    if content[_MARK] > FORMAT:
        raise UsageError(
            f"{path}: was written by latent-drift {content.get('versions', {}).get('latent_drift')} in format {content[_MARK]}; "
            f"this is {__version__}, which reads up to {FORMAT}. Install the newer one."
        )
    found = content["kind"]
    if kind is not None and found != kind:
        raise UsageError(f"{path}: holds the model {found!r}, {kind!r} is needed; take a checkpoint of `latent-drift train {kind}`")
    if found not in KINDS:
        raise UsageError(f"{path}: holds a model {found!r}; this release knows {' and '.join(KINDS)}")
    try:
        settings = RunSettings.from_document(content["settings"])
        config = load(content["config"])
    except (UsageError, ConfigError) as error:
        raise UsageError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:  # a value of another kind than any run has
        raise UsageError(f"{path}: its settings are damaged ({error})") from error
    return Checkpoint(path, settings, config, content["step"], content, note)


def load_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        UsageError: they do not fit, or are not finite.
    """
    weights = checkpoint.content["model"]
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        lines = [shorten(line, 160) for line in str(error).splitlines()[1:4]] or [str(error)]
        raise UsageError(f"{checkpoint.path}: its weights do not fit a model of the sizes it states: {'; '.join(lines)}") from error
    spoilt = [name for name, value in weights.items() if isinstance(value, Tensor) and not bool(value.isfinite().all())]
    if spoilt:
        raise UsageError(f"{checkpoint.path}: {len(spoilt)} of its weights are not finite, {spoilt[0]} for one; take a checkpoint from before that")
