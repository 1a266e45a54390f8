"""Child processes that run guarded too: DataLoader workers, `torch.multiprocessing.spawn`, any `multiprocessing.Process`.

While `guarding_children` is open, what a process that is started has to run goes through a block of its own there, with the same config. It is
told by pickling, as multiprocessing does with everything of a child, so it holds for fork, forkserver and spawn.

What a child did is written below the report's folder: `children/rank-N`, joined into one report, for children that are the ranks of a
distributed job, and `children/NAME-PID` for any other that had something to say. Without a folder it is said on standard error.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from instrument.interception import replace_attribute, restore
from instrument.report import folder as report_folder
from instrument.report import recording
from instrument.report.rank import process_rank
from instrument.run import Run
from instrument.session import stable
from instrument.termination import before_termination
from latent_drift.config import StabilityConfig

FOLDER = "children"


@dataclass(frozen=True)
class Guarded:
    """What a child process runs, in a block of its own."""

    body: Callable[..., Any]
    config: dict[str, Any]
    report: str | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with stable(self.config) as run:
                is_rank = _Remembered(run)
                # `torch.multiprocessing.spawn` ends the others with SIGTERM when one fails: what they did is written before they die of it.
                before_termination([run.circumstances.end, lambda how: _tell(run, self.report, is_rank())])
                try:
                    return self.body(*args, **kwargs)
                except BaseException as error:
                    run.circumstances.end(f"ended by {type(error).__name__}")
                    raise
        finally:
            _tell(run, self.report, is_rank())


class _Remembered:
    """Whether this process is a rank of its own, and which. Read with every step: a script takes its process group down before it ends."""

    def __init__(self, run: Run) -> None:
        self._found = False
        self._run = run
        run.subscriptions.add(on_step=lambda record: self(), apart=True)

    def __call__(self) -> bool:
        # A worker of a rank inherits the launcher's environment: only a process group tells the rank itself.
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._found = self._run.rank is not None
        return self._found


def _tell(run: Run, report: str | None, is_rank: bool) -> None:
    if report is None:
        if run.events:
            sys.stderr.write(f"process {os.getpid()}: {run.summary()}\n")
        return
    try:
        if is_rank:
            report_folder.save_rank(run, Path(report) / FOLDER)
        elif run.events:
            name = "".join(c if c.isalnum() or c in "-_" else "-" for c in multiprocessing.current_process().name)
            recording.write(recording.of_run(run, None), Path(report) / FOLDER / f"{name}-{os.getpid()}")
    except OSError as error:
        sys.stderr.write(f"error: what process {os.getpid()} did could not be written below {report}: {error.strerror}\n")


@contextlib.contextmanager
def guarding_children(config: StabilityConfig, report: Path | None) -> Iterator[None]:
    """While it is open, processes that are started run guarded by `config`, and what they did is written below `report`."""
    here = sys.modules[__name__]
    told = {"config": config.document(), "report": None if report is None else str(report.absolute())}

    def start(self: BaseProcess) -> None:
        # A script with an `instrument` of its own has taken the name by which a child would find this class.
        if sys.modules.get(__name__) is here and not isinstance(vars(self).get("_target"), Guarded) and "run" not in vars(self):
            if type(self).run is BaseProcess.run:
                if self._target is not None:  # type: ignore[attr-defined]
                    self._target = Guarded(self._target, **told)  # type: ignore[attr-defined,arg-type]
            else:
                self.run = Guarded(_OwnRun(self), **told)  # type: ignore[method-assign,arg-type]
        original(self)

    original = BaseProcess.start
    start.__name__, start.__qualname__, start.__doc__ = original.__name__, original.__qualname__, original.__doc__
    if report is not None and process_rank() is None:
        shutil.rmtree(report / FOLDER, ignore_errors=True)  # of an earlier run
    replaced = [replace_attribute(BaseProcess, "start", start)]
    try:
        yield
    finally:
        restore(replaced)


@dataclass(frozen=True)
class _OwnRun:
    """The `run` that a subclass of Process defines."""

    process: BaseProcess

    def __call__(self) -> None:
        type(self.process).run(self.process)
