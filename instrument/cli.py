"""The command line of instrument: `python -m instrument run|demo|report|doctor`, and `stable-run`. Argument parsing and printing only."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from instrument import demo as demo_module
from instrument import doctor as doctor_module
from instrument.children import guarding_children
from instrument.export import Exporter, attach, exporter_for
from instrument.report import folder as report_folder
from instrument.report.journal import Journal
from instrument.report.live import follow
from instrument.run import Run
from instrument.runner import Outcome, run_guarded
from instrument.session import stable
from instrument.termination import before_termination
from latent_drift.errors import ConfigError, MissingExtraError, UsageError

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
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="DIR", help="Write report.html, events.jsonl, timeline.jsonl and summary.json there, while it runs."),
]
AsModule = Annotated[bool, typer.Option("-m", help="TARGET is a module, as in `python -m`.")]
FailOnEvent = Annotated[bool, typer.Option("--fail-on-event", help="Exit with status 3 if anything had to be done (under observe: was found).")]
Live = Annotated[bool, typer.Option("--live", help="Show loss, gradient norm and interventions while it runs, on standard error.")]
Export = Annotated[
    list[str] | None,
    typer.Option("--export", metavar="KIND[:WHERE]", help="Send metrics: tensorboard:DIR, prometheus:PORT or opentelemetry. May be repeated."),
]
Children = Annotated[bool, typer.Option("--children", help="Guard the processes that the script starts as well (workers, spawn).")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No table at the end.")]
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def _refuse(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(ASKED_WRONGLY)


def _terminal_width(stream: TextIO) -> int | None:
    """Columns to wrap prose at; None for a pipe or a file, where a line is a line."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def _finish(outcome: Outcome, report: Path | None, fail_on_event: bool, quiet: bool) -> None:
    """Write the report, print the table to standard error, and end as the script did."""
    status = outcome.status
    if report is not None:
        try:
            outcome.run.save(report)
        except OSError as error:
            typer.echo(f"error: the report could not be written to {report}: {error.strerror}. Give a folder that can be written", err=True)
            status = status or ASKED_WRONGLY
        except KeyboardInterrupt:  # what was recorded is written first; only the page is missing
            typer.echo(f"the page was not written; python -m instrument report {report} writes it", err=True)
    if not quiet and (outcome.run.events or not outcome.run.rank):
        # of several processes the first speaks, and every other that has something to say
        typer.echo(outcome.run.summary(_terminal_width(sys.stderr)), err=True)
    if outcome.died_of:
        # Ends as Python does after Ctrl-C: killed by the signal, so that a shell loop stops too.
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.Signals(outcome.died_of), signal.SIG_DFL)
        os.kill(os.getpid(), outcome.died_of)
    had_to_act = outcome.run.interventions if outcome.run.policy.act else len(outcome.run.events)
    if status == 0 and fail_on_event and had_to_act:
        status = SOMETHING_DONE
    if status:
        raise typer.Exit(status)


def _followers(report: Path | None, live: bool, exports: Sequence[Exporter], with_children: contextlib.ExitStack | None) -> Callable[[Run], None]:
    """What is to follow the run: the report's writer, the live view and the exporters; and its child processes, until the stack closes."""

    def begin(run: Run) -> None:
        if with_children is not None:
            with_children.enter_context(guarding_children(run.config, report))
        last: list[Callable[[str], object]] = []
        view = follow(run, sys.stderr) if live else None
        if view is not None:
            last.append(lambda state: view.close())
        if report is not None:
            try:
                last.append(Journal(run, report).write_last)
            except OSError as error:
                typer.echo(f"error: the report cannot be written to {report}: {error.strerror}; the script runs all the same", err=True)
        for exporter in exports:
            attach(run, exporter)
        before_termination(last)

    return begin


def _doctor_wanted(wanted: bool) -> None:
    if wanted:
        doctor()
        raise typer.Exit


def run(
    context: typer.Context,
    target: Target,
    config: Config = None,
    profile: Profile = None,
    report: Report = None,
    as_module: AsModule = False,
    fail_on_event: FailOnEvent = False,
    live: Live = False,
    export: Export = None,
    children: Children = False,
    quiet: Quiet = False,
    doctor: Annotated[
        bool, typer.Option("--doctor", help="Say what would get in the way here, and exit.", is_eager=True, callback=_doctor_wanted)
    ] = False,
) -> None:
    """Run a script as `python SCRIPT ARGS` would, guarded. Its standard output, exit status and traceback are its own."""
    try:
        block = stable(config, profile=profile)
        exporters = [exporter_for(wanted) for wanted in export or ()]
    except (ConfigError, UsageError, MissingExtraError) as error:
        raise _refuse(str(error)) from None
    if not as_module and not os.path.exists(target):
        raise _refuse(f"can't open file {target!r}: there is no such file. Give the path of a Python script, or -m and the name of a module")
    try:
        with contextlib.ExitStack() as open_meanwhile:
            begin = _followers(report, live, exporters, open_meanwhile if children else None)
            outcome = run_guarded(target, context.args, block, as_module=as_module, begin=begin)
    except OSError as error:
        raise _refuse(f"can't open file {target!r}: {error.strerror}. Give the path of a readable Python script") from None
    _finish(outcome, report, fail_on_event, quiet)


app.command(context_settings=_PASS_ON)(run)


@app.command()
def demo(steps: Annotated[int, typer.Option(help="Training steps of each run.", min=20)] = 300) -> None:
    """Run a bundled legacy-style script plain (it fails), then guarded (it trains), and show what was done."""
    raise typer.Exit(demo_module.show(steps, typer.echo))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that --report or run.save() wrote, also of a run that was killed.")],
) -> None:
    """Write report.html again from what a run left, and print its table. The folders of several processes are joined."""
    try:
        found = report_folder.read(folder)
    except UsageError as error:
        raise _refuse(str(error)) from None
    typer.echo(found.table(_terminal_width(sys.stdout)))
    try:
        report_folder.rebuild(folder)
    except OSError as error:
        raise _refuse(f"{folder / report_folder.PAGE} could not be written: {error.strerror}. Give a folder that can be written") from None
    typer.echo(f"  {folder / report_folder.PAGE}")


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


_runner = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_runner.command(name="stable-run", context_settings=_PASS_ON)(run)


def main() -> None:
    """`python -m instrument`."""
    app(prog_name="python -m instrument")


def stable_run() -> None:
    """`stable-run`: the same as `python -m instrument run`, and safe from an instrument.py in the working directory."""
    _runner(prog_name="stable-run")
