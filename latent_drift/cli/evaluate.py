"""`latent-drift evaluate`: figures of a trained model on data that it has not seen."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from latent_drift.cli import trained as on_checkpoint


def evaluate(
    checkpoint: on_checkpoint.Given,
    data: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help="synthetic, held out from training; synthetic:samples=N,seed=N (raccoon: drift=N too); or a file as for train."
        ),
    ] = "synthetic",
    seed: Annotated[int, typer.Option(min=0, help="Of the sequences that an ode draws.")] = 0,
    device: on_checkpoint.Device = "cpu",
    config: on_checkpoint.Config = None,
    change_config: on_checkpoint.ChangeConfig = False,
    as_json: on_checkpoint.Json = False,
) -> None:
    """Evaluate a model on held-out data.

    A raccoon: accuracy, cross-entropy, recall by class and confusion. An ode: its losses, and the share of its samples that are well formed.
    """
    from latent_drift.cli.devices import device_of
    from latent_drift.cli.results import confusion_table, summary
    from latent_drift.training.data import open_data
    from latent_drift.training.evaluation import ITEMS
    from latent_drift.training.evaluation import evaluate as figures_of
    from latent_drift.training.settings import HELD_OUT

    loaded = on_checkpoint.load(checkpoint, None, device, config, change_config)
    settings = loaded.checkpoint.settings
    items = open_data(settings.kind, data, settings.seed + HELD_OUT, ITEMS[settings.kind])
    figures = figures_of(settings.kind, loaded.model, items, device_of(device), seed=seed)
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(loaded.checkpoint.path), "step": loaded.checkpoint.step, "data": data, **figures}, indent=2))
        return
    typer.echo(
        f"{loaded.checkpoint.path}: {settings.kind}, step {loaded.checkpoint.step} of {settings.steps}, config {loaded.checkpoint.config.identity}"
    )
    typer.echo(summary(settings.kind, figures))
    if settings.kind == "raccoon":
        typer.echo(confusion_table(figures["confusion"]))
