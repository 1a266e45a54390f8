"""`latent-drift sample`: sequences drawn from a trained latent ODE."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from latent_drift.cli import trained as on_checkpoint


def sample(
    checkpoint: on_checkpoint.Given,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="How many sequences.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Characters of each; the model was trained on 67.")] = 67,
    shared: Annotated[bool, typer.Option("--shared", help="All from one starting latent, instead of one each.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    device: on_checkpoint.Device = "cpu",
    config: on_checkpoint.Config = None,
    change_config: on_checkpoint.ChangeConfig = False,
    as_json: on_checkpoint.Json = False,
) -> None:
    """Draw sequences from a latent ODE.

    One a line, from its learned prior.
    """
    from latent_drift.training.samples import draw_sequences, is_well_formed

    model = on_checkpoint.load(checkpoint, "ode", device, config, change_config).model
    for text in draw_sequences(model, count, length, seed, shared=shared):  # type: ignore[arg-type]
        typer.echo(json.dumps({"text": text, "well_formed": is_well_formed(text)}) if as_json else text)
