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

FIRST_STEPS = """\b
From a first run to an answer:
  latent-drift train raccoon --out runs/logs     # about ten seconds
  latent-drift evaluate runs/logs
  latent-drift classify runs/logs /var/log/syslog
  tail -f app.log | latent-drift classify runs/logs --only ERROR
Each command says more: latent-drift COMMAND --help"""

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


@app.callback(epilog=FIRST_STEPS)
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
) -> None:
    """Numerically stable training: models, stability configs and checks."""


def _says_what_another_says(error: LatentDriftError) -> bool:
    """Whether this is one of several processes that torchrun started with one command line, and all of them refuse it alike."""
    shared = isinstance(error, (UsageError, ConfigError, MissingExtraError))
    return shared and "LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0"


def _lack_of_memory(error: BaseException) -> str | None:
    """What could not be allocated, or None where the error is another."""
    text = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return text or "an allocation failed"
    start = text.find("can't allocate memory")  # torch on a CPU, which has no exception of its own for it
    return None if start < 0 else text[start:].partition(". Error code")[0]


def main() -> None:
    """Run the command line; errors of ours are one message on standard error and exit status 2."""
    try:
        app()
    except LatentDriftError as error:
        if not _says_what_another_says(error):
            sys.stderr.write(f"latent-drift: error: {error}\n")
        raise SystemExit(FAILED) from None
    except (MemoryError, RuntimeError) as error:
        lacking = _lack_of_memory(error)
        if lacking is None:
            raise
        sys.stderr.write(
            f"latent-drift: error: there is not enough memory ({lacking}); take smaller numbers for the model, the batch, the data or the draws\n"
        )
        raise SystemExit(FAILED) from None
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:  # the system's refusals are the user's to mend, wherever they come from
        sys.stderr.write(f"latent-drift: error: {error}\n")
        raise SystemExit(FAILED) from None
