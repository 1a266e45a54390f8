"""The command `latent-drift`: argument parsing only. Each command's module imports what is heavy when it runs."""

from __future__ import annotations

import os
import sys

import typer

from latent_drift.cli.classify import classify
from latent_drift.cli.config import app as config_app
from latent_drift.cli.evaluate import evaluate
from latent_drift.cli.sample import sample
from latent_drift.cli.stability_test import stability_test
from latent_drift.cli.train import EPILOG, train
from latent_drift.errors import ConfigError, LatentDriftError, MissingExtraError, UsageError

FAILED = 2
"""Exit status of a command that could not do its work: bad usage, or an error of ours."""

app = typer.Typer(name="latent-drift", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(config_app, name="config")
app.command(name="train", epilog=EPILOG)(train)
app.command(name="sample")(sample)
app.command(name="classify")(classify)
app.command(name="evaluate")(evaluate)
app.command(name="stability-test")(stability_test)


def _show_version(asked: bool) -> None:
    if asked:
        from latent_drift import __version__

        typer.echo(f"latent-drift {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
) -> None:
    """Numerically stable training: models, stability configs and checks."""


def _says_what_another_says(error: LatentDriftError) -> bool:
    """Whether this is one of several processes that torchrun started with one command line, and all of them refuse it alike."""
    shared = isinstance(error, (UsageError, ConfigError, MissingExtraError))
    return shared and "LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0"


def main() -> None:
    """Run the command line; errors of ours are one message on standard error and exit status 2."""
    try:
        app()
    except LatentDriftError as error:
        if not _says_what_another_says(error):
            sys.stderr.write(f"latent-drift: error: {error}\n")
        raise SystemExit(FAILED) from None
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        sys.stderr.close()
        raise SystemExit(1) from None
