"""The command line of instrument: `python -m instrument run|demo|report|doctor`, and `stable-run`. Argument parsing only: `commands` does
what is asked for, and is imported when that is known, since it brings torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from instrument.asked_wrongly import refuse

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


def _doctor_wanted(wanted: bool) -> None:
    if wanted:
        doctor()
        raise typer.Exit


def _version_wanted(wanted: bool) -> None:
    if wanted:
        from latent_drift._version import __version__

        typer.echo(f"latent-drift {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version_wanted)] = False,
) -> None:
    """Make an unmodified PyTorch training script numerically safe while it runs, and say which line broke it."""


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
    if not as_module and not os.path.exists(target):
        if target.startswith("-"):
            raise refuse(f"no such option: {target}. `--help` lists them; they stand before the script, and what follows it is its own")
        raise refuse(f"can't open file {target!r}: there is no such file. Give the path of a Python script, or -m and the name of a module")
    from instrument import commands

    commands.run_script(
        target,
        context.args,
        config=config,
        profile=profile,
        report=report,
        as_module=as_module,
        fail_on_event=fail_on_event,
        live=live,
        export=export or (),
        children=children,
        quiet=quiet,
    )


app.command(context_settings=_PASS_ON)(run)


@app.command()
def demo(steps: Annotated[int, typer.Option(help="Training steps of each run.", min=20)] = 300) -> None:
    """Run a bundled legacy-style script plain (it fails), then guarded (it trains), and show what was done."""
    from instrument import commands

    commands.show_demo(steps)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that --report or run.save() wrote, also of a run that was killed.")],
) -> None:
    """Write report.html again from what a run left, and print its table. The folders of several processes are joined."""
    from instrument import commands

    commands.rebuild_report(folder)


@app.command()
def doctor() -> None:
    """Versions, the tested range of torch, the active config, what would be guarded, and what could get in the way."""
    from instrument import commands

    commands.examine()


_runner = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_runner.command(name="stable-run", context_settings=_PASS_ON)(run)


def main() -> None:
    """`python -m instrument`."""
    app(prog_name="python -m instrument")


def stable_run() -> None:
    """`stable-run`: the same as `python -m instrument run`, and safe from an instrument.py in the working directory."""
    _runner(prog_name="stable-run")
