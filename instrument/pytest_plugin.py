"""`pytest --stable[=PIN]` and `@pytest.mark.stable`: tests run guarded, and a number that went wrong fails the test at its line.

pytest --stable                 every test, by the newest config
pytest --stable=~=1.0           every test, by a pinned one (a version, a specifier, a file)
@pytest.mark.stable             this test, also without the option
@pytest.mark.stable("1.0.0", profile="observe", allow=["NS201"], gradient={"nonfinite": "zero"})
@pytest.mark.stable(enabled=False)    not this test

The profile is `guard` unless the marker names one: it acts only on what is broken, so a healthy test computes what it computes without. Clipping,
which a marker with `profile="train"` turns on, fails no test. Only the test itself is guarded, not its fixtures.

Loaded by every pytest in the environment: nothing here imports torch before a test is to be guarded.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from instrument.events import Event
    from instrument.run import Run

MARKER = (
    "stable(pin=None, *, profile='guard', allow=(), enabled=True, **overrides): run the test guarded by latent-drift's instrument; a numerical event "
    "fails it. `allow` names codes that do not."
)


@dataclass(frozen=True)
class _Wanted:
    """How a test is to be guarded."""

    pin: Any = None
    profile: str = "guard"
    allow: tuple[str, ...] = ()
    enabled: bool = True
    overrides: dict[str, Any] = field(default_factory=dict)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--stable[=PIN]`."""
    parser.getgroup("latent-drift").addoption(
        "--stable",
        nargs="?",
        const="",
        default=None,
        metavar="PIN",
        help="run every test guarded by latent-drift's instrument; a numerical event fails the test. PIN: a stability config, as in --stable=~=1.0",
    )


def _is_pin(word: str) -> bool:
    """Whether the word after a bare `--stable` is its pin, and not the first test to run."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        Version(word)
    except InvalidVersion:
        try:
            SpecifierSet(word)
        except InvalidSpecifier:
            return Path(word).suffix in (".toml", ".json")
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> Generator[None, object, object]:
    """`pytest --stable tests/` means all of tests/: an optional value would take the folder for the pin."""
    for index, word in enumerate(args):
        if word == "--":
            break
        if word == "--stable":
            following = args[index + 1] if index + 1 < len(args) else "-"
            if following.startswith("-") or not _is_pin(following):
                args[index] = "--stable="
                known = early_config.known_args_namespace
                if known.stable == following and not following.startswith("-"):
                    known.stable = ""
                    known.file_or_dir = [following, *known.file_or_dir]
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker, and refuse a pin that cannot be used before any test runs."""
    config.addinivalue_line("markers", MARKER)
    pin = config.getoption("stable", None)
    if pin is not None:
        from latent_drift.config import load
        from latent_drift.errors import ConfigError

        try:
            load(pin or None, profile="guard")
        except ConfigError as error:
            raise pytest.UsageError(f"--stable={pin}: {error}") from None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Which numerics guard the tests."""
    pin = config.getoption("stable", None)
    if pin is None:
        return None
    from latent_drift.config import load

    return f"stable: {load(pin or None, profile='guard').identity}"


def _wanted(item: pytest.Item) -> _Wanted | None:
    marker = item.get_closest_marker("stable")
    option = item.config.getoption("stable", None)
    if marker is None:
        return None if option is None else _Wanted(option or None)
    arguments = dict(marker.kwargs)
    pin = marker.args[0] if marker.args else arguments.pop("pin", None)
    allow = arguments.pop("allow", ())
    return _Wanted(
        pin=pin if pin is not None else option or None,
        profile=arguments.pop("profile", "guard"),
        allow=(allow,) if isinstance(allow, str) else tuple(allow),
        enabled=arguments.pop("enabled", True),
        overrides=arguments,
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """The test inside a guarded block of its own."""
    wanted = _wanted(item)
    if wanted is None or not wanted.enabled:
        return (yield)
    from instrument.session import stable
    from latent_drift.errors import ConfigError

    try:
        block = stable(wanted.pin, profile=wanted.profile, **wanted.overrides)
    except ConfigError as error:
        pytest.fail(f"@pytest.mark.stable: {error}", pytrace=False)
    run: Run | None = None
    try:
        with block as run:
            result = yield
    except BaseException:
        # The test failed or was skipped by itself: what was found may be the reason, and is shown beside it.
        if run is not None and run.events:
            item.add_report_section("call", "stable", run.summary())
        raise
    found = [event for event in run.events if event.action != "clipped" and event.code not in wanted.allow]
    if found:
        pytest.fail(_told(run, found), pytrace=False)
    return result


def _told(run: Run, found: list[Event]) -> str:
    """The first cause, then everything that was found, with the remedy of each."""
    from patches.findings import FINDINGS

    cause = run.first_cause if run.first_cause in found else found[0]
    assert cause is not None
    lines = [f"a number went wrong at {_place(cause)}: {cause.code} {cause.name}: {cause.message}"]
    for event in [cause, *(event for event in found if event is not cause)]:
        lines.append(f"{_place(event)}: {event.code} {event.name} ({event.action}, {event.count} times): {event.message}")
        if event.source:
            lines.append(f"    {event.source}")
    lines += [f"{code}: {FINDINGS[code].remedy}" for code in dict.fromkeys(event.code for event in [cause, *found])]
    lines.append('It was mended or kept out while the test ran. Where it is meant: @pytest.mark.stable(allow=["CODE"]).')
    return "\n".join(lines)


def _place(event: Event) -> str:
    """`file.py:line`, relative to where pytest was started, as its own reports are."""
    if event.file is None:
        return event.where
    path = Path(event.file)
    here = Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{event.line}"
