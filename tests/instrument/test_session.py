"""The ways to open a block."""

import asyncio
import subprocess
import sys

import pytest
import torch

import instrument
from latent_drift.errors import ConfigError

HOT = torch.tensor([1.0, 200.0])


def is_guarded():
    return bool(torch.isfinite(torch.exp(HOT)).all())


def test_decorator_with_and_without_arguments():
    @instrument.stable
    def bare():
        """Doc."""
        return is_guarded()

    @instrument.stable("1.0.0", profile="guard")
    def pinned(value):
        return is_guarded() and value

    assert bare() is True
    assert bare.__doc__ == "Doc."
    assert pinned(7) == 7
    assert not is_guarded()


def test_decorated_method_binds():
    class Trainer:
        @instrument.stable
        def train(self):
            return self, is_guarded()

    trainer = Trainer()
    assert trainer.train() == (trainer, True)


def test_decorated_generator_is_guarded_while_it_runs_and_gives_its_return_value():
    @instrument.stable()
    def numbers():
        received = yield is_guarded()
        return received

    generator = numbers()
    assert next(generator) is True
    with pytest.raises(StopIteration) as stop:
        generator.send("x")
    assert stop.value.value == "x"
    assert not is_guarded()


def test_decorated_coroutine_and_async_generator():
    @instrument.stable()
    async def coroutine():
        await asyncio.sleep(0)
        return is_guarded()

    @instrument.stable()
    async def agenerator():
        yield is_guarded()

    async def both():
        async with instrument.stable() as run:
            inside = is_guarded()
        return inside, await coroutine(), [x async for x in agenerator()], len(run.events)

    assert asyncio.run(both()) == (True, True, [True], 1)
    assert not is_guarded()


def test_install_and_uninstall():
    run = instrument.install(profile="guard")
    try:
        assert is_guarded()
    finally:
        assert instrument.uninstall() is run
    assert not is_guarded()
    assert instrument.uninstall() is None


@pytest.mark.parametrize(("arguments", "expected"), [(("9.9",), "1.0.0"), (("~=7.1",), "1.0.0")])
def test_a_pin_that_nothing_satisfies_names_what_there_is(arguments, expected):
    with pytest.raises(ConfigError, match=expected):
        instrument.stable(*arguments)
    assert not is_guarded()


def test_unknown_profile_and_unknown_key_are_refused_before_anything_is_replaced():
    original = torch.exp
    with pytest.raises(ConfigError, match="guard"):
        instrument.stable(profile="gaurd")
    with pytest.raises(ConfigError, match="max_norm"):
        instrument.stable(gradient={"clip": {"kind": "norm", "max_nrom": 1.0}})
    assert torch.exp is original


def test_every_event_carries_version_and_hash():
    with instrument.stable("~=1.0", profile="guard") as run:
        torch.exp(HOT)
    (event,) = run.events
    assert event.config_version == run.config.version == "1.0.0"
    assert event.config_sha256 == run.config.sha256
    assert event.profile == "guard"


def test_a_block_in_which_nothing_happened_says_so():
    with instrument.stable() as run:
        pass
    assert run.events == ()
    assert "nothing had to be done" in run.summary()


def test_the_toolbox_follows_the_innermost_pin():
    from latent_drift.config import active

    outside = active()
    with instrument.stable(profile="guard") as outer:
        assert active() is outer.config
        with instrument.stable(exp={"bound": 5.0}) as inner:
            assert active() is inner.config
        assert active() is outer.config
    assert active() == outside


@pytest.mark.parametrize("order", ["import torch\nimport instrument\n", "import torch\nfrom instrument import stable\nimport instrument\n"])
def test_the_first_block_of_a_process_leaves_torchs_names_as_they_were(order):
    ask = order + (
        "places = [torch, torch.Tensor, torch.nn.functional, torch.special, torch.linalg, torch.autograd, torch.optim.Optimizer, torch.optim.Adam]\n"
        "before = [dict(vars(place)) for place in places]\n"
        "with instrument.stable():\n"
        "    p = torch.nn.Parameter(torch.ones(2)); o = torch.optim.Adam([p]); p.exp().sum().backward(); o.step()\n"
        "for place, names in zip(places, before):\n"
        "    now = dict(vars(place))\n"
        "    assert now.keys() == names.keys(), (place, now.keys() ^ names.keys())\n"
        "    assert all(now[k] is names[k] for k in names), place\n"
    )
    result = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
