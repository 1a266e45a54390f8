"""The command line of `patches`: argument parsing and printing only. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from patches.errors import PatchesError, PatchesUsageError

if TYPE_CHECKING:
    from patches.configuration import Configuration
    from patches.engine import Diagnostic
    from patches.runner import Failed, Job, Outcome

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The findings of instrument, found and mended in the source. Exit status: 0 clean, 1 findings, 2 could not run.",
)

Paths = Annotated[list[Path] | None, typer.Argument(help="Files and folders; - for standard input. Default: the files of --from-report, else .")]
Select = Annotated[list[str] | None, typer.Option("--select", help="Codes, prefixes or names to turn on instead of the defaults; AUDIT; ALL.")]
Ignore = Annotated[list[str] | None, typer.Option("--ignore", help="Codes or prefixes to turn off.")]
Unsafe = Annotated[bool | None, typer.Option("--unsafe/--no-unsafe", help="Also fixes that may change a finite value.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="What the code will run in: float16, bfloat16, float32, float64.")]
TargetTorch = Annotated[str | None, typer.Option("--target-torch", help="Oldest torch the code must run on, e.g. 2.4.")]
Bound = Annotated[str | None, typer.Option("--bound", help="How a log-variance is bounded: returning (default) or clamp.")]
Ruleset = Annotated[str | None, typer.Option("--ruleset", help="Pin of the rule set: a version or PEP 440 specifier, e.g. '~=1.0'.")]
FromReport = Annotated[Path | None, typer.Option("--from-report", help="Folder of an instrument run: only lines that fired.")]
StdinName = Annotated[str | None, typer.Option("--stdin-filename", help="Name to report for standard input.")]
Config = Annotated[Path | None, typer.Option("--config", help="A pyproject.toml to read instead of the nearest one.")]


def _version_wanted(wanted: bool) -> None:
    if wanted:
        from patches.rulesets import released

        typer.echo(f"patches, rule set {list(released())[-1]}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the newest rule set and exit.", is_eager=True, callback=_version_wanted)] = False,
) -> None:
    """The findings of instrument, found and mended in the source. Exit status: 0 clean, 1 findings, 2 could not run."""


@app.command()
def check(
    paths: Paths = None,
    select: Select = None,
    ignore: Ignore = None,
    unsafe: Unsafe = None,
    dtype: Dtype = None,
    target_torch: TargetTorch = None,
    bound: Bound = None,
    ruleset: Ruleset = None,
    from_report: FromReport = None,
    stdin_filename: StdinName = None,
    config: Config = None,
    output: Annotated[str | None, typer.Option("--output", help="text, json, sarif or github.")] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", help="Report only what this file does not hold.")] = None,
    write_baseline: Annotated[Path | None, typer.Option("--write-baseline", help="Write the findings as a baseline and exit 0.")] = None,
) -> None:
    """Reports findings. Exit status 0: clean, 1: findings, 2: could not run."""
    from patches import baseline as baselines
    from patches import output as formats

    given = _given(select, ignore, unsafe, dtype, target_torch, bound, ruleset, output=output, baseline=baseline)
    configuration, outcomes = _run(paths, given, from_report, stdin_filename, config, patch=False)
    diagnostics, failures = _split(outcomes)
    if write_baseline is not None:
        count = baselines.write(write_baseline, diagnostics)
        _say(f"{count} findings written to {write_baseline}")
        raise typer.Exit(2 if failures else 0)
    if configuration.baseline is not None:
        diagnostics = baselines.new_findings(diagnostics, baselines.read(configuration.baseline))
    match configuration.output:
        case "json":
            _write(formats.as_json(diagnostics))
        case "sarif":
            _write(formats.as_sarif(diagnostics, failures, _version()))
        case "github":
            _write(formats.as_github(diagnostics))
        case _:
            _write(formats.as_text(diagnostics))
            _write(formats.summary(diagnostics, len(outcomes), len(failures)) + "\n")
    raise typer.Exit(1 if diagnostics else 2 if failures else 0)


@app.command()
def diff(
    paths: Paths = None,
    select: Select = None,
    ignore: Ignore = None,
    unsafe: Unsafe = None,
    dtype: Dtype = None,
    target_torch: TargetTorch = None,
    bound: Bound = None,
    ruleset: Ruleset = None,
    from_report: FromReport = None,
    stdin_filename: StdinName = None,
    config: Config = None,
) -> None:
    """Prints the fixes as a unified diff, which `patch -p0` and `git apply` take. Exit status 0, or 2: could not run.

    With --from-report the unsafe fixes are shown too, since something has failed and nothing is written; --no-unsafe leaves them out.
    """
    from patches import output as formats
    from patches.runner import Patched

    if from_report is not None and unsafe is None:
        unsafe = True
    given = _given(select, ignore, unsafe, dtype, target_torch, bound, ruleset)
    _, outcomes = _run(paths, given, from_report, stdin_filename, config, patch=True)
    changed = 0
    for outcome in outcomes:
        if isinstance(outcome, Patched) and outcome.before != outcome.after:
            sys.stdout.buffer.write(formats.unified_diff(outcome.path, outcome.before, outcome.after))
            changed += 1
    sys.stdout.buffer.flush()
    _closing_words(outcomes, changed, "would change", unsafe)


@app.command()
def apply(
    paths: Paths = None,
    select: Select = None,
    ignore: Ignore = None,
    unsafe: Unsafe = None,
    dtype: Dtype = None,
    target_torch: TargetTorch = None,
    bound: Bound = None,
    ruleset: Ruleset = None,
    from_report: FromReport = None,
    stdin_filename: StdinName = None,
    config: Config = None,
) -> None:
    """Writes the fixes, each file in one step; a second run changes nothing. Exit status 0, or 2: could not run."""
    from patches.runner import Patched, write

    given = _given(select, ignore, unsafe, dtype, target_torch, bound, ruleset)
    _, outcomes = _run(paths, given, from_report, stdin_filename, config, patch=True)
    changed = 0
    trouble = False
    for outcome in outcomes:
        if not isinstance(outcome, Patched):
            continue
        if paths and str(paths[0]) == "-":
            sys.stdout.buffer.write(outcome.after)
            sys.stdout.buffer.flush()
        elif outcome.before != outcome.after:
            try:
                write(outcome)
            except OSError as error:
                _say(f"{outcome.path}: not written: {error.strerror}")
                trouble = True
                continue
        changed += outcome.before != outcome.after
    _closing_words(outcomes, changed, "changed", unsafe, trouble)


@app.command()
def explain(code: Annotated[str, typer.Argument(help="A code or name: NS201, exp-logvar.")]) -> None:
    """Prints a finding's page."""
    from patches.findings import finding

    try:
        found = finding(code.upper() if code[-1:].isdigit() else code)
    except KeyError as error:
        _fail(str(error.args[0]))
    lines = [
        f"{found.code} {found.name}",
        "",
        f"{found.summary}.",
        f"Remedy: {found.remedy}.",
        f"Fix: {found.fix}; {'on' if found.default else 'off'} by default.",
        "",
    ]
    if found.fix == "none":
        lines.append("This finding exists at run time only (python -m instrument); no source form is known.")
    else:
        import inspect

        from patches.rules import RULES

        pages = [inspect.getdoc(rule) or "" for rule in RULES if rule.code == found.code]
        lines.extend(pages)
    _write("\n".join(lines) + "\n")


@app.command("list")
def list_findings(output: Annotated[str, typer.Option("--output", help="text or json.")] = "text") -> None:
    """Lists every finding with its fix and default."""
    from patches.findings import FAMILIES, FINDINGS

    if output == "json":
        import json

        entries = [
            {"code": f.code, "name": f.name, "summary": f.summary, "remedy": f.remedy, "fix": f.fix, "default": f.default} for f in FINDINGS.values()
        ]
        _write(json.dumps(entries, indent=2) + "\n")
        return
    if output != "text":
        _fail(f"--output: expected text or json, got {output!r}")
    family = None
    lines: list[str] = []
    for found in FINDINGS.values():
        if found.family != family:
            family = found.family
            lines.append(f"{'' if not lines else chr(10)}{family}  {FAMILIES[family]}")
        state = "run time" if found.fix == "none" else "on" if found.default else "off"
        lines.append(f"  {found.code}  {found.name:<24} {state:<8} {found.fix:<8} {found.summary}")
    _write("\n".join(lines) + "\n")


def _given(
    select: list[str] | None,
    ignore: list[str] | None,
    unsafe: bool | None,
    dtype: str | None,
    target_torch: str | None,
    bound: str | None,
    ruleset: str | None,
    **others: Any,
) -> dict[str, Any]:
    return {
        "select": select or None,
        "ignore": ignore or None,
        "unsafe": unsafe,
        "dtype": dtype,
        "target-torch": target_torch,
        "bound": bound,
        "ruleset": ruleset,
        **others,
    }


def _run(
    paths: list[Path] | None, given: dict[str, Any], from_report: Path | None, stdin_filename: str | None, config: Path | None, patch: bool
) -> tuple[Configuration, list[Outcome]]:
    from patches import configuration, discovery
    from patches.firing import assign_files, read_firings
    from patches.output import shown_path
    from patches.runner import Job, run

    named = list(paths or [])
    standard_input = [path for path in named if str(path) == "-"]
    if standard_input and len(named) > 1:
        raise PatchesUsageError("- (standard input) stands alone; give no other path")
    firings = read_firings(from_report) if from_report is not None else None
    if not named:
        named = sorted({Path(f.file) for f in firings if Path(f.file).is_file()}) if firings is not None else [Path()]
    start = (
        Path(stdin_filename or ".").parent if standard_input else (named[0] if named and named[0].is_dir() else named[0].parent if named else Path())
    )
    table, origin = configuration.find_table(config.parent if config is not None else start)
    if config is not None and not config.is_file():
        raise PatchesUsageError(f"--config {config}: no such file")
    made = configuration.configure(table, origin, given)
    if standard_input:
        return made, [_from_stdin(stdin_filename or "<stdin>", made, firings, patch)]
    files = discovery.find_files(named, made.exclude)
    if not files:
        _say(f"no Python files in {', '.join(map(str, named)) or 'the report'}")
    placed = None
    if firings is not None:
        placed, notes = assign_files(firings, files)
        for note in notes:
            _say(note)
        if not placed:
            _say(f"nothing in {from_report} fired in {', '.join(map(str, named)) or 'a file that is still there'}")
    jobs: list[Job] = []
    for path in files:
        fired = None if placed is None else tuple(placed.get(path, ()))
        if fired == ():
            continue
        jobs.append(Job(path, shown_path(path), made.settings, patch, fired))
    return made, _with_progress(jobs, run)


def _with_progress(jobs: list[Job], run: Any) -> list[Outcome]:
    if len(jobs) < 200 or not sys.stderr.isatty():
        return list(run(jobs))
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("files", total=len(jobs))
        return list(run(jobs, advance=lambda: progress.advance(task)))


def _from_stdin(name: str, made: Configuration, firings: Any, patch: bool) -> Outcome:
    from patches.firing import assign_files
    from patches.runner import Job, Patched, process_text

    text = sys.stdin.buffer.read().decode("utf-8")
    path = Path(name)
    fired = tuple(assign_files(firings, [path])[0].get(path, ())) if firings is not None else None
    outcome = process_text(Job(path, name, made.settings, patch, fired), text)
    if isinstance(outcome, tuple):
        changed, applied, remaining, notes = outcome
        return Patched(name, text.encode(), changed.encode(), applied, remaining, notes)
    return outcome


def _split(outcomes: list[Outcome]) -> tuple[list[Diagnostic], list[Failed]]:
    from patches.runner import Checked, Failed

    diagnostics: list[Diagnostic] = []
    failures: list[Failed] = []
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            failures.append(outcome)
            _say(f"{outcome.path}:{outcome.line}:{outcome.column}: {outcome.reason}")
        elif isinstance(outcome, Checked):
            diagnostics.extend(outcome.diagnostics)
            for note in outcome.notes:
                _say(note)
    return diagnostics, failures


def _closing_words(outcomes: list[Outcome], changed: int, verb: str, unsafe: bool | None, trouble: bool = False) -> None:
    from patches.output import fix_kind
    from patches.runner import Patched

    _, failures = _split(outcomes)
    patched = [outcome for outcome in outcomes if isinstance(outcome, Patched)]
    for outcome in patched:
        for note in outcome.notes:
            _say(note)
    applied = sum(len(outcome.applied) for outcome in patched)
    left = [fix_kind(d) for outcome in patched for d in outcome.remaining]
    rest = f"left: {left.count('unsafe')} unsafe (--unsafe), {left.count('display')} shown only"
    _say(f"{applied} fixes, {changed} of {len(outcomes)} files {verb}; {rest}")
    raise typer.Exit(2 if failures or trouble else 0)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("latent-drift")
    except PackageNotFoundError:
        return "0"


def _write(text: str) -> None:
    sys.stdout.write(text)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _fail(message: str) -> NoReturn:
    _say(f"patches: {message}")
    raise SystemExit(2)


def main() -> None:
    """The entry point of `python -m patches`."""
    try:
        app(prog_name="python -m patches")
    except PatchesError as error:
        _fail(str(error))
    except BrokenPipeError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
