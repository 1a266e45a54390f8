"""Which config rules: nested, per thread and task, and for the whole process."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from pathlib import Path

import pytest

from latent_drift.config import active, load, using, using_everywhere
from latent_drift.config.sources import ENVIRONMENT
from latent_drift.errors import ConfigError


def in_a_thread() -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(active().identity))
    thread.start()
    thread.join()
    return found[0]


def test_the_inner_config_rules_inside_and_the_outer_is_back_afterwards() -> None:
    default = active()
    assert default == load()
    with using("0.9.0") as outer:
        assert active() is outer
        with using("1.0.0", profile="guard") as inner:
            assert active() is inner
        assert active() is outer
    assert active() is default


def test_the_outer_is_back_after_an_exception() -> None:
    default = active()
    with pytest.raises(ZeroDivisionError), using("0.9.0"):
        _ = 1 / 0
    assert active() is default


def test_a_pin_that_fails_leaves_everything_as_it_was() -> None:
    default = active()
    with pytest.raises(ConfigError), using(">=99"):
        pass
    with pytest.raises(ConfigError), using_everywhere(">=99"):
        pass
    assert active() is default


def test_other_threads_see_only_what_rules_everywhere() -> None:
    default = active().identity
    with using("0.9.0"):
        assert in_a_thread() == default
        with using_everywhere("1.0.0", profile="guard") as everywhere:
            assert active() is everywhere
            assert in_a_thread() == everywhere.identity
            with using("0.9.0") as inner:
                assert active() is inner
                assert in_a_thread() == everywhere.identity
        assert active().version == "0.9.0"
    assert in_a_thread() == default


def test_blocks_for_the_whole_process_may_be_left_in_any_order() -> None:
    default = active()
    first, second = using_everywhere("0.9.0"), using_everywhere("1.0.0", profile="strict")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert active().profile == "strict"
    second.__exit__(None, None, None)
    assert active() is default


def test_tasks_do_not_see_each_others_config() -> None:
    async def task(pin: str, other: asyncio.Event, mine: asyncio.Event) -> str:
        with using(pin):
            mine.set()
            await other.wait()
            return active().version

    async def both() -> list[str]:
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("0.9.0", a, b), task("1.0.0", b, a))

    assert asyncio.run(both()) == ["0.9.0", "1.0.0"]


def test_a_block_left_in_another_context_is_left() -> None:
    block = using("0.9.0")
    block.__enter__()
    contextvars.copy_context().run(block.__exit__, None, None, None)
    assert active() == load()


def test_blocks_that_were_left_are_forgotten() -> None:
    module = sys.modules["latent_drift.config.active"]
    with using("1.0.0") as outer:
        for _ in range(3):
            with using("0.9.0"):
                pass
        assert [activation.config for activation in module._here.get()] == [outer]
    assert module._here.get() == ()
    with using_everywhere("0.9.0"):
        pass
    assert module._everywhere == ()


def test_the_default_follows_directory_and_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert active().version == "1.0.0"
    monkeypatch.setenv(ENVIRONMENT, "0.9.0")
    assert active().version == "0.9.0"
    monkeypatch.delenv(ENVIRONMENT)
    other = project / "other"
    other.mkdir()
    (other / "pyproject.toml").write_text('[tool.latent-drift]\nprofile = "observe"\n')
    monkeypatch.chdir(other)
    assert active().profile == "observe"
