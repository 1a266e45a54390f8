"""The command line of instrument: `python -m instrument run|demo|report|doctor`, and `stable-run`. Argument parsing and printing only."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from instrument import demo as demo_module
from instrument import doctor as doctor_module
from instrument.events import read_jsonl
from instrument.report.terminal import summary_table
from instrument.run import read_facts
from instrument.runner import Outcome, run_guarded
from instrument.session import stable
from latent_drift.errors import ConfigError, UsageError

ASKED_WRONGLY = 2
SOMETHING_DONE = 3

app = typer.Typer(
    name="instrument",
    help="Make an unmodified PyTorch training script numerically safe while it runs, and say which line broke it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Target = Annotated[str, typer.Argument(metavar="SCRIPT", help="The script (or with -m the module) to run; everything after it is its own.")]
Config = Annotated[
    str | None, typer.Option("--config", metavar="PIN", help="Stability config: a version ('1.0.0'), a specifier ('~=1.0') or a file.")
]
Profile = Annotated[str | None, typer.Option(help="observe (alters nothing), guard (acts on what is broken), train (guard and clipping), strict.")]
Report = Annotated[Path | None, typer.Option("--report", metavar="DIR", help="Write events.jsonl and summary.json there.")]
AsModule = Annotated[bool, typer.Option("-m", help="TARGET is a module, as in `python -m`.")]
FailOnEvent = Annotated[bool, typer.Option("--fail-on-event", help="Exit with status 3 if any number had to be altered.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No table at the end.")]
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def _refuse(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(ASKED_WRONGLY)


def _finish(outcome: Outcome, report: Path | None, fail_on_event: bool, quiet: bool) -> None:
    """Write the report, print the table to standard error, and end as the script did."""
    status = outcome.status
    if report is not None:
        try:
            outcome.run.save(report)
        except OSError as error:
            typer.echo(f"error: the report could not be written to {report}: {error.strerror}. Give a folder that can be written", err=True)
            status = status or ASKED_WRONGLY
    if not quiet:
        typer.echo(outcome.run.summary(), err=True)
    if outcome.died_of:
        # Ends as Python does after Ctrl-C: killed by the signal, so that a shell loop stops too.
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.Signals(outcome.died_of), signal.SIG_DFL)
        os.kill(os.getpid(), outcome.died_of)
    if status == 0 and fail_on_event and outcome.run.interventions:
        status = SOMETHING_DONE
    if status:
        raise typer.Exit(status)


@app.command(context_settings=_PASS_ON)
def run(
    context: typer.Context,
    target: Target,
    config: Config = None,
    profile: Profile = None,
    report: Report = None,
    as_module: AsModule = False,
    fail_on_event: FailOnEvent = False,
    quiet: Quiet = False,
) -> None:
    """Run a script as `python SCRIPT ARGS` would, guarded. Its standard output, exit status and traceback are its own."""
    try:
        block = stable(config, profile=profile)
    except ConfigError as error:
        raise _refuse(str(error)) from None
    if not as_module and not os.path.exists(target):
        raise _refuse(f"can't open file {target!r}: there is no such file. Give the path of a Python script, or -m and the name of a module")
    try:
        outcome = run_guarded(target, context.args, block, as_module=as_module)
    except OSError as error:
        raise _refuse(f"can't open file {target!r}: {error.strerror}. Give the path of a readable Python script") from None
    _finish(outcome, report, fail_on_event, quiet)


@app.command()
def demo(steps: Annotated[int, typer.Option(help="Training steps of each run.", min=20)] = 300) -> None:
    """Run a bundled legacy-style script plain (it fails), then guarded (it trains), and show what was done."""
    raise typer.Exit(demo_module.show(steps, typer.echo))


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that --report or run.save() wrote.")]) -> None:
    """Print the table of a finished run."""
    try:
        typer.echo(summary_table(read_jsonl(folder / "events.jsonl"), read_facts(folder / "summary.json")))
    except UsageError as error:
        raise _refuse(str(error)) from None


@app.command()
def doctor() -> None:
    """Versions, the tested range of torch, the active config, what would be guarded, and what could get in the way."""
    try:
        findings = doctor_module.examine()
    except ConfigError as error:
        raise _refuse(str(error)) from None
    for label, value in findings.facts:
        typer.echo(f"{label:<22}{value}")
    for problem in findings.problems:
        typer.echo(f"problem: {problem}", err=True)
    if findings.problems:
        raise typer.Exit(1)


def _doctor_wanted(wanted: bool) -> None:
    if wanted:
        doctor()
        raise typer.Exit


def _stable_run(
    context: typer.Context,
    target: Target,
    config: Config = None,
    profile: Profile = None,
    report: Report = None,
    as_module: AsModule = False,
    fail_on_event: FailOnEvent = False,
    quiet: Quiet = False,
    doctor: Annotated[
        bool, typer.Option("--doctor", help="Say what would get in the way here, and exit.", is_eager=True, callback=_doctor_wanted)
    ] = False,
) -> None:
    """Run a script as `python SCRIPT ARGS` would, guarded. The same as `python -m instrument run`."""
    run(context, target, config, profile, report, as_module, fail_on_event, quiet)


_runner = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_runner.command(name="stable-run", context_settings=_PASS_ON)(_stable_run)


def main() -> None:
    """`python -m instrument`."""
    app(prog_name="python -m instrument")


def stable_run() -> None:
    """`stable-run`: the same as `python -m instrument run`, and safe from an instrument.py in the working directory."""
    _runner(prog_name="stable-run")
