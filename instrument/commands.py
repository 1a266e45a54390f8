"""What the commands of `python -m instrument` do: apart from its words, so that help and a mistyped option need not wait for torch."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import typer

from instrument import demo as demo_module
from instrument import doctor as doctor_module
from instrument.asked_wrongly import ASKED_WRONGLY, refuse
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

SOMETHING_DONE = 3


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


def run_script(
    target: str,
    arguments: Sequence[str],
    *,
    config: str | None,
    profile: str | None,
    report: Path | None,
    as_module: bool,
    fail_on_event: bool,
    live: bool,
    export: Sequence[str],
    children: bool,
    quiet: bool,
) -> None:
    """Run a script or module guarded; returns, or exits with its status, or ours."""
    try:
        block = stable(config, profile=profile)
        exporters = [exporter_for(wanted) for wanted in export]
    except (ConfigError, UsageError, MissingExtraError) as error:
        raise refuse(str(error)) from None
    try:
        with contextlib.ExitStack() as open_meanwhile:
            begin = _followers(report, live, exporters, open_meanwhile if children else None)
            outcome = run_guarded(target, list(arguments), block, as_module=as_module, begin=begin)
    except OSError as error:
        raise refuse(f"can't open file {target!r}: {error.strerror}. Give the path of a readable Python script") from None
    _finish(outcome, report, fail_on_event, quiet)


def show_demo(steps: int) -> None:
    """The bundled script, plain and guarded; exits with its status."""
    raise typer.Exit(demo_module.show(steps, typer.echo))


def rebuild_report(folder: Path) -> None:
    """Print a folder's table and write its page again."""
    try:
        found = report_folder.read(folder)
    except UsageError as error:
        raise refuse(str(error)) from None
    typer.echo(found.table(_terminal_width(sys.stdout)))
    try:
        report_folder.rebuild(folder)
    except OSError as error:
        raise refuse(f"{folder / report_folder.PAGE} could not be written: {error.strerror}. Give a folder that can be written") from None
    typer.echo(f"  {folder / report_folder.PAGE}")


def examine() -> None:
    """Print what the doctor finds; exits with 1 where something is in the way."""
    try:
        findings = doctor_module.examine()
    except ConfigError as error:
        raise refuse(str(error)) from None
    for label, value in findings.facts:
        typer.echo(f"{label:<22}{value}")
    for problem in findings.problems:
        typer.echo(f"problem: {problem}", err=True)
    if findings.problems:
        raise typer.Exit(1)
