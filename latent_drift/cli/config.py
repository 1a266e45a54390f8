"""`latent-drift config`: releases, what is in them, where values come from, locks. Loads no torch.

Exit status: 0 done, and nothing differs; 1 `diff` found a difference, `check` a broken lock;
2 the command could not be carried out.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from latent_drift.config import StabilityConfig

DIFFERS = 1
"""Exit status where two things that should be, or were asked to be, the same are not."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Stability configs: released, pinned, provable.")

Pin = Annotated[
    str | None,
    typer.Argument(metavar="[PIN]", help="A version, a specifier such as '~=1.0', or a .toml or .json file; what the project says if left out."),
]
Profile = Annotated[str | None, typer.Option("--profile", help="observe, guard, train or strict.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override one value, e.g. gradient.clip.max_norm=0.5; may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


class Format(StrEnum):
    """File formats that a config is written in."""

    toml = "toml"
    json = "json"


def _overrides(assignments: list[str] | None) -> dict[str, Any]:
    """The values of `--set`, each read as TOML (0.5, true, [..], "text") and as bare text where it is none."""
    import tomllib

    overrides: dict[str, Any] = {}
    for assignment in assignments or []:
        path, sign, text = assignment.partition("=")
        if not sign or not path.strip():
            raise typer.BadParameter(f"expected PATH=VALUE, got {assignment!r}", param_hint="--set")
        try:
            overrides[path.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[path.strip()] = text.strip()
    return overrides


def _load(pin: str | None, profile: str | None, assignments: list[str] | None = None) -> StabilityConfig:
    from latent_drift.config import load

    return load(pin, profile=profile, **_overrides(assignments))


def _echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the installed releases with dates and hashes, oldest first."""
    from latent_drift.config import available

    releases = available()
    if as_json:
        _echo_json(
            [
                {
                    "version": release.version,
                    "released": None if release.released is None else release.released.isoformat(),
                    "draft": release.draft,
                    "superseded": release.superseded,
                    "sha256": release.sha256,
                    "title": release.title,
                    "profiles": list(release.profiles),
                }
                for release in releases
            ]
        )
        return
    width = max(len(release.version) for release in releases)
    for release in releases:
        date = "draft" if release.released is None else release.released.isoformat()
        mark = " (superseded)" if release.superseded else ""
        typer.echo(f"{release.version:<{width}}  {date:<10}  {release.sha256}  {release.title}{mark}")


@app.command()
def show(
    pin: Pin = None,
    profile: Profile = None,
    assignments: Set = None,
    as_json: Json = False,
    file_format: Annotated[Format, typer.Option("--format", help="What to write; the result is a file that load() takes back.")] = Format.toml,
) -> None:
    """Show a resolved config with all its values."""
    from latent_drift.config.toml_text import to_toml

    config = _load(pin, profile, assignments)
    if as_json or file_format is Format.json:
        _echo_json(config.document())
    else:
        typer.echo(f"# {config.identity}\n{to_toml(config.document())}", nl=False)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A pin or a file.")],
    after: Annotated[str, typer.Argument(metavar="B", help="A pin or a file.")],
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Show by field what differs between two configs.

    Exit status: 0 nothing differs, 1 something does.
    """
    from latent_drift.config import compare
    from latent_drift.config.frozen import thaw
    from latent_drift.config.notes import note_on, notes_of

    first, second = _load(before, profile), _load(after, profile)
    differences = compare(first, second)
    notes = notes_of(first)
    if as_json:
        _echo_json(
            {
                "before": first.identity,
                "after": second.identity,
                "differences": [
                    {
                        "path": difference.path,
                        "before": thaw(difference.before),
                        "after": thaw(difference.after),
                        "only_in": difference.only_in,
                        "note": note_on(notes, difference.path),
                    }
                    for difference in differences
                ],
            }
        )
    else:
        typer.echo(f"{first.identity} -> {second.identity}")
        for difference in differences:
            note = note_on(notes, difference.path)
            typer.echo(f"  {difference}" + (f"\n      {first.version}: {note}" if note else ""))
        typer.echo(f"{len(differences)} values differ" if differences else "the values are equal")
    if differences:
        raise typer.Exit(DIFFERS)


@app.command()
def explain(
    pin: Pin = None,
    profile: Profile = None,
    assignments: Set = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="PATH", help="A value or section to explain; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Say where each value of a config comes from."""
    from latent_drift.config import explain as explain_config

    explanation = explain_config(pin, profile=profile, **_overrides(assignments))
    if only:
        explanation = explanation.only(only)
    if as_json:
        _echo_json(explanation.document())
    else:
        typer.echo(str(explanation))


@app.command()
def lock(
    pin: Pin = None,
    profile: Profile = None,
    assignments: Set = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The lock file.")] = Path("stability.lock"),
    as_json: Json = False,
) -> None:
    """Write a lock file: which config it is, and all of it.

    Version, hash, overrides, values and the version of torch.
    """
    from latent_drift.config.files import write_atomically
    from latent_drift.config.lock import Lock

    config = _load(pin, profile, assignments)
    document = Lock.of(config).document()
    write_atomically(output, json.dumps(document, indent=2, allow_nan=False) + "\n")
    if as_json:
        _echo_json({"path": str(output), **document})
    else:
        typer.echo(f"{output}: {config.identity}")


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="[LOCK]", help="The lock file.")] = Path("stability.lock"),
    as_json: Json = False,
) -> None:
    """Check that the values of a lock file still hold.

    Exit status: 0 the installed release gives them, 1 it does not.
    """
    from latent_drift.config.lock import check_lock, read_lock

    found = check_lock(read_lock(path))
    if as_json:
        _echo_json({"path": str(path), "version": found.lock.version, "holds": found.holds, "broken": list(found.broken), "notes": list(found.notes)})
    else:
        for note in found.notes:
            typer.echo(f"note: {note}")
        for broken in found.broken:
            typer.echo(broken)
        typer.echo(f"{path}: {'holds' if found.holds else 'broken'} ({found.lock.version}, profile {found.lock.profile})")
    if not found.holds:
        raise typer.Exit(DIFFERS)


@app.command()
def migrate(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A saved config of any schema, .toml or .json.")],
    write: Annotated[bool, typer.Option("--write", help="Rewrite the file instead of showing the result.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a saved config to the current schema."""
    from latent_drift.config import load
    from latent_drift.config.files import write_atomically
    from latent_drift.config.migrate import migrate as migrate_document
    from latent_drift.config.sources import read_document
    from latent_drift.config.toml_text import to_toml

    old = read_document(path)
    new = migrate_document(old, str(path))
    load(new)  # refuses what only looks like a config, before anything is written
    is_json = as_json or path.suffix.lower() != ".toml"
    text = json.dumps(new, indent=2, allow_nan=False, default=str) + "\n" if is_json else to_toml(new)
    if not write:
        typer.echo(text, nl=False)
    elif new == old:
        typer.echo(f"{path}: schema {new['schema_version']} already; not changed")
    else:
        write_atomically(path, text)
        typer.echo(f"{path}: schema {old['schema_version']} -> {new['schema_version']}")


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file instead of showing it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same: a schema is JSON.")] = False,
) -> None:
    """Give the JSON Schema of a config file, for editors."""
    from latent_drift.config.files import write_atomically
    from latent_drift.config.schema import json_schema

    if output is None:
        _echo_json(json_schema())
    else:
        write_atomically(output, json.dumps(json_schema(), indent=2) + "\n")
        typer.echo(str(output))
