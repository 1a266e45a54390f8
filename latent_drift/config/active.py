"""Which config rules here and now: the innermost `using` block's, else what the sources say."""

from __future__ import annotations

import itertools
import operator
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from latent_drift.config.load import Source, load
from latent_drift.config.sources import ENVIRONMENT
from latent_drift.config.v1 import StabilityConfig


class Activation:
    """One block's claim to rule: its config, and how late it was made."""

    __slots__ = ("config", "is_live", "serial")

    def __init__(self, config: StabilityConfig, serial: int) -> None:
        self.config = config
        self.serial = serial
        self.is_live = True


_serials = itertools.count()
_by_serial = operator.attrgetter("serial")
_lock = threading.Lock()
_everywhere: tuple[Activation, ...] = ()  # replaced as a whole under the lock, read without it
_here: ContextVar[tuple[Activation, ...]] = ContextVar("latent_drift_config", default=())


def active() -> StabilityConfig:
    """The config that rules here: of the innermost `using` or `using_everywhere` block that is open, else `load()`.

    What `load()` gives is remembered by working directory and `LATENT_DRIFT_CONFIG`; a pyproject.toml
    that is edited while the process runs is not read again.

    Raises:
        ConfigError: no block is open and the sources name no usable config.
    """
    here = _here.get()
    if here or _everywhere:  # otherwise the common case: nothing to look through
        newest = max((activation for activation in (*_everywhere, *here) if activation.is_live), key=_by_serial, default=None)
        if newest is not None:
            return newest.config
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        directory = ""
    return _default(directory, os.environ.get(ENVIRONMENT))


@lru_cache(maxsize=16)
def _default(directory: str, environment: str | None) -> StabilityConfig:
    return load()


@contextmanager
def using(source: Source | None = None, *, profile: str | None = None, **overrides: Any) -> Iterator[StabilityConfig]:
    """Let a config (named as for `load`) rule in this block, in this thread or task; the outer one rules again afterwards.

    Raises:
        ConfigError: as for `load`.
    """
    activation = Activation(load(source, profile=profile, **overrides), next(_serials))
    _here.set((*(outer for outer in _here.get() if outer.is_live), activation))
    try:
        yield activation.config
    finally:
        # No token is reset: a block may be left in another context than it was entered in (a notebook's next cell, a generator).
        activation.is_live = False
        _here.set(tuple(outer for outer in _here.get() if outer.is_live))


@contextmanager
def using_everywhere(source: Source | None = None, *, profile: str | None = None, **overrides: Any) -> Iterator[StabilityConfig]:
    """As `using`, but for all threads and tasks of the process. Blocks may be left in any order; the latest still open rules.

    Raises:
        ConfigError: as for `load`.
    """
    global _everywhere
    activation = Activation(load(source, profile=profile, **overrides), next(_serials))
    with _lock:
        _everywhere = (*_everywhere, activation)
    try:
        yield activation.config
    finally:
        activation.is_live = False
        with _lock:
            _everywhere = tuple(other for other in _everywhere if other is not activation)
