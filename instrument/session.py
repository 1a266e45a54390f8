"""Opening and closing a guarded block: process-wide, re-entrant, nested, by `with`, decorator or `install()`."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from instrument import jit, warning_sites
from instrument.circumstances import ended_by
from instrument.distributed.agreement import AGREEMENT
from instrument.guards import OPERATION_GUARDS, backward, loading, sighting, step
from instrument.guards.base import Spelling
from instrument.interception import Replacement, Undo, lookup, rebind, replace_attribute, restore
from instrument.recovery import counters, loss_scale
from instrument.recovery.training_objects import watch_registration
from instrument.run import Run
from instrument.runtime import RUNTIME
from instrument.subscriptions import OnEvent, OnStep
from latent_drift.config import StabilityConfig, load, using_everywhere

Pin = str | Path | Mapping[str, Any] | StabilityConfig | None


class _Installation:
    """What is replaced while at least one block is open. One a process, made on the first entry, undone on the last exit."""

    def __init__(self) -> None:
        self._replacements: list[Replacement] = []
        self._rebound: list[Undo] = []
        self._table: dict[int, Any] = {}
        self._originals: dict[int, Any] = {}
        self._modules_before: frozenset[str] = frozenset()
        self._born: list[weakref.ref[Optimizer]] = []
        self._hooks: list[RemovableHandle] = []
        self.names: tuple[str, ...] = ()
        self.foreign: tuple[str, ...] = ()

    def install(self, frames: Iterator[FrameType]) -> None:
        """Replace every spelling, then every name that was bound to one earlier."""
        jit.prepare()
        names = []
        stand_ins: dict[int, Any] = {}
        for guard in OPERATION_GUARDS:
            for spelling in guard.spellings():
                names.append(self._replace(spelling, guard.stand_in, stand_ins))
        for spelling in backward.spellings():
            names.append(self._replace(spelling, backward.stand_in, stand_ins))
        for spelling in loading.spellings():
            names.append(self._replace(spelling, loading.stand_in, stand_ins))
        for spelling in sighting.spellings():
            names.append(self._replace(spelling, sighting.stand_in, stand_ins))
        for cls in _optimizer_classes(Optimizer):
            if "step" in vars(cls):
                self._guard_step(cls)
                names.append(f"{cls.__name__}.step")
        for spelling in counters.spellings():
            names.append(self._replace(spelling, counters.stand_in, stand_ins))
        for spelling in loss_scale.spellings():
            names.append(self._replace(spelling, loss_scale.stand_in, stand_ins))
        self._watch_construction()
        self._replacements.append(warning_sites.redirect())
        AGREEMENT.open()
        self._hooks = [register_optimizer_step_pre_hook(step.before_step), register_optimizer_step_post_hook(step.after_step)]
        self._hooks += watch_registration(_meet_module)
        self.names = tuple(names)
        self._table = stand_ins
        self._originals = {id(new): new.__wrapped__ for new in stand_ins.values()}
        jit.register(self._replacements)
        self._rebound = rebind(stand_ins, _LANDMARKS, modules=sys.modules, frames=frames)
        self._modules_before = frozenset(sys.modules)

    def _replace(self, spelling: Spelling, make: Callable[[Any, Spelling], Any], stand_ins: dict[int, Any]) -> str:
        original = lookup(spelling.owner, spelling.name)
        # One object under two names (torch.special.softmax is torch.softmax's twin or itself) gets one stand-in.
        new = stand_ins.get(id(original))
        if new is None:
            new = make(original, spelling)
            stand_ins[id(original)] = new
        self._replacements.append(replace_attribute(spelling.owner, spelling.name, new))
        return spelling.path

    def _guard_step(self, cls: type[Optimizer]) -> None:
        self._replacements.append(replace_attribute(cls, "step", step.stand_in(vars(cls)["step"], cls)))

    def _watch_construction(self) -> None:
        """Classes that are defined inside the block are met when their first instance is built: torch wraps their step then, and so do we.

        An instance built inside of a class that torch had not wrapped before keeps its hooks after the block through an attribute of its own,
        since the class is put back exactly as it was.
        """
        original = Optimizer._patch_step_function

        @functools.wraps(original)
        def patch_step_function(optimizer: Optimizer) -> None:
            original(optimizer)
            if RUNTIME.active:
                cls = type(optimizer)
                if "step" in vars(cls) and not any(r.owner is cls and r.name == "step" for r in self._replacements):
                    self._guard_step(cls)
                self._born.append(weakref.ref(optimizer))
                for run in _OPEN:
                    run.optimizers.add(optimizer)

        self._replacements.append(replace_attribute(Optimizer, "_patch_step_function", patch_step_function))

    def uninstall(self) -> None:
        """Put the very same objects back, last replaced first."""
        AGREEMENT.close()
        jit.unregister(self._replacements)
        for undo in reversed(self._rebound):
            undo()
        self._rebound.clear()
        for handle in self._hooks:
            handle.remove()
        self.foreign = tuple(restore(self._replacements))
        # Modules imported inside the block have bound stand-ins by name.
        late = {name: module for name, module in list(sys.modules.items()) if name not in self._modules_before or name == "__main__"}
        rebind(self._originals, _LANDMARKS, modules=late, late=True)
        for reference in self._born:
            optimizer = reference()
            if optimizer is not None and not getattr(type(optimizer).step, "hooked", False) and "step" not in vars(optimizer):
                optimizer.__dict__["step"] = Optimizer.profile_hook_step(type(optimizer).step).__get__(optimizer)
        self._born.clear()


def _meet_module(module: nn.Module) -> None:
    for run in _OPEN:
        run.recovery.training.meet_module(module)


def _optimizer_classes(root: type[Optimizer]) -> list[type[Optimizer]]:
    found, pending = [], [root]
    seen: set[type] = set()
    while pending:
        cls = pending.pop()
        if cls not in seen:
            seen.add(cls)
            found.append(cls)
            pending.extend(cls.__subclasses__())
    return found


# A module that can hold a name of torch's names at least one of these.
_LANDMARKS = frozenset(
    id(o)
    for o in (
        torch,
        torch.nn,
        torch.nn.functional,
        torch.special,
        torch.optim,
        torch.autograd,
        torch.distributions,
        torch.Tensor,
        nn.Module,
        nn.Parameter,
    )
)

_LOCK = threading.RLock()
_OPEN: list[Run] = []


def _forked() -> None:
    for run in _OPEN:
        run.forked.begin(run)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

_INSTALLATION = _Installation()


def _enter(run: Run, caller: FrameType | None) -> None:
    with _LOCK:
        if not _OPEN:
            _INSTALLATION.install(_frames(caller))
        run.intercepted = _INSTALLATION.names
        _OPEN.append(run)
        # The toolbox reads its constants from the active config: inside the block that is the block's.
        run.active_config.enter_context(using_everywhere(run.config))
        _activate()


def _leave(run: Run, error: BaseException | None) -> None:
    run.search.end(error)
    run.close()
    with _LOCK:
        # Blocks of several threads may close in any order: the one that closes is removed, the last one restores.
        for index in range(len(_OPEN) - 1, -1, -1):
            if _OPEN[index] is run:
                del _OPEN[index]
                run.active_config.close()
                break
        _activate()
        if not _OPEN:
            _INSTALLATION.uninstall()
            run.foreign_patches = _INSTALLATION.foreign
    run.read_deferred()
    run.circumstances.end(ended_by(error))
    run.subscriptions.close()


def _activate() -> None:
    RUNTIME.active = bool(_OPEN)
    if _OPEN:
        RUNTIME.run = _OPEN[-1]
        RUNTIME.bounds = RUNTIME.run.armed.exp_bounds if RUNTIME.run.policy.act else None
        RUNTIME.upcast = RUNTIME.run.policy.upcast
    else:
        RUNTIME.bounds = None
        RUNTIME.upcast = False


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        if frame.f_code.co_name != "<module>":  # a module's names are looked through with the modules
            yield frame
        frame = frame.f_back


class stable:  # it reads as a verb: `with stable():`
    """A block, function or decorated coroutine or generator in which PyTorch's numerics are guarded.

    with instrument.stable() as run: ...
    @instrument.stable("~=1.0", profile="guard")

    Args:
        pin: which stability config: a PEP 440 specifier or version, a file, a mapping or a config. Without one, what LATENT_DRIFT_CONFIG or
            pyproject.toml say, else the newest release.
        profile: `observe`, `guard`, `train` (the default) or `strict`.
        on_event, on_step: subscribers of every run of this object, as `Run.subscribe` takes them.
        overrides: config sections to change, such as `gradient={"clip": {"kind": "norm", "max_norm": 0.5}}`.

    Guarding is process-wide: other threads are guarded too while any block is open. Blocks nest (the inner config rules inside) and one
    object may be entered again; each entry gives a `Run` of its own. On leaving the last block every object that was replaced is the very
    same as before, also after an exception.

    Raises:
        ConfigError: the pin, profile or an override cannot be used; nothing has been replaced then.
    """

    def __init__(
        self,
        pin: Pin | Callable[..., Any] = None,
        *,
        profile: str | None = None,
        on_event: OnEvent | None = None,
        on_step: OnStep | None = None,
        **overrides: Any,
    ) -> None:
        self._function: Callable[..., Any] | None = None
        if callable(pin) and not isinstance(pin, str | Path | Mapping | StabilityConfig):
            self._function, pin = pin, None
        self._config = load(pin, profile=profile, **overrides)
        self._on_event, self._on_step = on_event, on_step
        self._runs: list[Run] = []
        self.runs: list[Run] = []
        """The runs of this object's entries, in order; a decorated function's calls are found here."""
        if self._function is not None:
            self._decorated = self._decorate(self._function)
            functools.update_wrapper(self, self._function)

    def __enter__(self) -> Run:
        run = Run(self._config)
        if self._on_event is not None or self._on_step is not None:
            run.subscribe(self._on_event, self._on_step)
        _enter(run, sys._getframe(1))
        self._runs.append(run)
        self.runs.append(run)
        return run

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        _leave(self._runs.pop(), error)

    async def __aenter__(self) -> Run:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._function is not None:
            return self._decorated(*args, **kwargs)
        (function,) = args
        return self._decorate(function)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """`@stable` without parentheses on a method binds as the method would."""
        if self._function is None:
            return self
        return self._decorated.__get__(instance, owner)

    def _decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return coroutine
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def async_generator(*args: Any, **kwargs: Any) -> Any:
                with self:
                    async for item in function(*args, **kwargs):
                        yield item

            return async_generator
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generator(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return (yield from function(*args, **kwargs))

            return generator

        @functools.wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return plain


_INSTALLED: list[tuple[stable, Run]] = []


def install(pin: Pin = None, *, profile: str | None = None, on_event: OnEvent | None = None, on_step: OnStep | None = None, **overrides: Any) -> Run:
    """Open a block that stays open until `uninstall()`, for notebooks and the REPL. A second call nests.

    Takes what `stable` takes and returns its run.
    """
    block = stable(pin, profile=profile, on_event=on_event, on_step=on_step, **overrides)
    run = block.__enter__()
    _INSTALLED.append((block, run))
    return run


def uninstall() -> Run | None:
    """Close the block that the latest `install()` opened; returns its run, or None if there was none open."""
    if not _INSTALLED:
        return None
    block, run = _INSTALLED.pop()
    block.__exit__(None, None, None)
    return run


def open_runs() -> tuple[Run, ...]:
    """The runs whose blocks are open now, outermost first."""
    return tuple(_OPEN)
