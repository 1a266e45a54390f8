"""What the commands on a checkpoint share: their arguments, and the model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from latent_drift.training.trained_model import TrainedModel

Given = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint.pt, or the folder of a run.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Config = Annotated[
    str | None,
    typer.Option(
        metavar="PIN", help="Stability config to use the model under; `checkpoint`, or nothing where no project pins one, is the one it has."
    ),
]
ChangeConfig = Annotated[bool, typer.Option("--change-config", help="Use the given config though the checkpoint was made under another.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def load(given: str, kind: str | None, device: str, config: str | None, change_config: bool) -> TrainedModel:
    """The model, its notes told on standard error."""
    from latent_drift.cli.devices import device_of
    from latent_drift.training.trained_model import load_trained

    trained = load_trained(given, kind, device_of(device), config, change_config=change_config)
    for note in trained.notes:
        sys.stderr.write(f"note: {note}\n")
    return trained
